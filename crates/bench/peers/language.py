"""SFT and CRINGE: a transformers model in a plain PyTorch loop.

Attention by `scaled_dot_product_attention`, without a mask where no row is padded; rows padded to the longest of their batch,
labels of prompt and padding -100, fused AdamW, the norm of the gradient clipped to 1, the loss read every step as loggers do.
"""

import torch
import torch.nn.functional as F
import ways


def load(work, material):
    return Language(work, material)


class Language:
    def __init__(self, work, material):
        self.task, self.way, self.numbers = work["task"], work["way"], work["numbers"]
        self.compute = ways.compute_kind(self.way)
        self.examples, self.batches = material["examples"], material["batches"]
        self.draws = material["draws"]
        self.model = ways.causal_model(work["model"], self.way)
        self.model.config.use_cache = False
        self.model.train()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=self.numbers["lr"], betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, fused=True
        )
        self.lengths = torch.tensor([len(one["ids"]) for one in self.examples])
        rows = [torch.tensor(one["ids"]) for one in self.examples]
        self.ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        at = torch.arange(self.ids.shape[1])
        self.real = at < self.lengths[:, None]
        learnt = self.real & (at >= torch.tensor([[one["prompt"]] for one in self.examples]))
        self.labels = self.ids.masked_fill(~learnt, -100)
        self.positive = torch.tensor([one["positive"] for one in self.examples])
        self.done = 0

    def first(self):
        batch = self.batches[0]
        rows = [self.examples[at]["ids"] for at in batch]
        return rows, sum(len(self.examples[at]["ids"]) - self.examples[at]["prompt"] for at in batch)

    def run(self, turns):
        made = None
        while True:
            turns.begin(made)
            made = self.step()

    def step(self):
        batch = self.batches[self.done]
        width = self.lengths[batch].max()
        ids, labels, real = (all_rows[batch, :width] for all_rows in (self.ids, self.labels, self.real))
        inputs = {"input_ids": ids} if real.all() else {"input_ids": ids, "attention_mask": real.long()}
        with ways.autocast(self.way):
            if self.task == "sft":
                loss = self.model(**inputs, labels=labels).loss
            else:
                logits = self.model(**inputs).logits
        if self.task == "cringe":
            loss = self.cringe(logits, labels, self.positive[batch])
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.done += 1
        return {"tokens": real.sum().item(), "values": {"loss": loss.item(), "grad_norm": norm.item()}}

    def cringe(self, logits, labels, positive):
        """Likelihood of positives, for negatives a contrast with one of the k likeliest other tokens; one denominator."""
        k, alpha = int(self.numbers["k"]), self.numbers["alpha"]
        logits, targets = logits[:, :-1], labels[:, 1:]
        learnt = targets != -100
        good, bad = learnt & positive[:, None], learnt & ~positive[:, None]
        likelihood = F.cross_entropy(logits[good].float(), targets[good], reduction="sum")
        scores, rejected = logits[bad].float(), targets[bad][:, None]
        top, top_ids = scores.topk(k + 1)
        # The target is no candidate; where it is not among the k + 1 likeliest, the last of them is none.
        out = top_ids == rejected
        out[:, -1] |= ~out.any(1)
        chances = top.detach().masked_fill(out, -torch.inf).softmax(-1)
        if self.done < len(self.draws):
            # The first steps take given draws, so that losses can be compared.
            draws = torch.tensor(self.draws[self.done]).view_as(targets[learnt])[bad[learnt]]
            reached = chances.double().cumsum(-1)
            drawn = (reached <= draws.double()[:, None] * reached[:, -1:]).sum(-1, keepdim=True)
        else:
            drawn = chances.multinomial(1)
        contrast = F.softplus(scores.gather(1, rejected) - top.gather(1, drawn)).sum()
        return (likelihood + alpha * contrast) / learnt.sum()
