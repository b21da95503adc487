"""Generation: `generate` of transformers with its cache, a batch of prompts at a time."""

import torch
import ways


def load(work, material):
    return Completions(work, material)


class Completions:
    def __init__(self, work, material):
        self.way, self.sampled, self.batch = work["way"], work["task"] == "sample", work["batch"]
        self.new_tokens = int(work["numbers"]["new_tokens"])
        self.compute = ways.compute_kind(self.way)
        self.prompts, self.ends = material["prompts"], material["ends"]
        self.model = ways.causal_model(work["model"], self.way)
        self.model.eval()
        # Greedy completions have one length, so that nothing but speed is compared.
        self.model.generation_config.eos_token_id = self.ends if self.sampled else None
        torch.manual_seed(5)

    def first(self):
        return self.prompts, len(self.prompts) * self.new_tokens

    def run(self, turns):
        made = None
        while True:
            turns.begin(made)
            made = self.step()

    def step(self):
        how = {"do_sample": False}
        if self.sampled:
            how = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
        completions, finished = [], 0
        for at in range(0, len(self.prompts), self.batch):
            ids = torch.tensor(self.prompts[at : at + self.batch])
            with torch.inference_mode():
                made = self.model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=self.new_tokens,
                    pad_token_id=0,
                    use_cache=True,
                    **how,
                )
            for row in made[:, ids.shape[1] :].tolist():
                end = next((place for place, token in enumerate(row) if self.sampled and token in self.ends), None)
                finished += end is not None
                completions.append(row if end is None else row[:end])
        tokens = sum(map(len, completions)) + finished
        return {"tokens": tokens, "values": {"finished": finished}, "ids": completions}
