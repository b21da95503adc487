"""Writes `expected.json`: what transformers' beam search makes of the f32 checkpoints of `tests/parity/cases`.

    python crates/model/tests/beam/make.py

Made with torch 2.11.0, transformers 4.57.6, one thread, each prompt by itself. N-grams are blocked within the completion
alone, by a processor of our own; all else is transformers' own. A case holds the checkpoint, the prompt, the settings, the
completion with its end token, and its score.
"""

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LogitsProcessor, LogitsProcessorList

HERE = Path(__file__).resolve().parent
CHECKPOINTS = HERE.parent / "parity" / "cases"
NAMES = ["llama_tied_f32", "llama_yarn_f32", "mistral_window_f32", "qwen2_sliding_f32", "phi3_f32", "gpt2_f32"]
NEW = 12
PROMPTS = [[5, 9, 4], [7], [11, 3, 8, 30, 6]]
# beams, length penalty, early stopping, least new tokens, blocked n-grams, end tokens
SETTINGS = [
    (2, 1.0, False, 0, None, [2]),
    (4, 1.0, False, 0, None, [2, 17]),
    (4, 0.0, False, 0, 2, [2, 17, 21]),
    (4, 2.0, True, 0, 3, [2, 17, 21]),
    (3, -0.5, "never", 0, None, [17, 21]),
    (3, 1.5, "never", 3, 2, [17, 21, 9]),
    (5, 0.6, True, 5, 2, [2, 17, 21, 9]),
    (10, 1.0, False, 4, 3, [2]),
]


class WithinCompletion(LogitsProcessor):
    """Bans tokens that would complete an n-gram which the completion has already."""

    def __init__(self, prompt, n):
        self.prompt, self.n = prompt, n

    def __call__(self, ids, scores):
        scores = scores.clone()
        for row, tokens in zip(scores, ids[:, self.prompt :].tolist()):
            grams = [tuple(tokens[i : i + self.n]) for i in range(len(tokens) - self.n + 1)]
            tail = tuple(tokens[len(tokens) - self.n + 1 :]) if len(tokens) >= self.n - 1 else None
            for gram in grams:
                if gram[:-1] == tail:
                    row[gram[-1]] = -float("inf")
        return scores


def main():
    torch.set_num_threads(1)
    cases = []
    for name in NAMES:
        model = AutoModelForCausalLM.from_pretrained(CHECKPOINTS / name, dtype=torch.float32).eval()
        for beams, penalty, stopping, least, ngram, ends in SETTINGS:
            for prompt in PROMPTS:
                processors = [] if ngram is None else [WithinCompletion(len(prompt), ngram)]
                with torch.no_grad():
                    out = model.generate(
                        torch.tensor([prompt]),
                        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
                        num_beams=beams,
                        length_penalty=penalty,
                        early_stopping=stopping,
                        min_new_tokens=least,
                        max_new_tokens=NEW,
                        eos_token_id=ends,
                        pad_token_id=0,
                        do_sample=False,
                        logits_processor=LogitsProcessorList(processors),
                        return_dict_in_generate=True,
                        output_scores=True,
                    )
                cases.append(
                    dict(
                        checkpoint=name,
                        prompt=prompt,
                        size=beams,
                        length_penalty=penalty,
                        early_stopping={False: "heuristic", True: "full"}.get(stopping, stopping),
                        min_new_tokens=least,
                        block_ngram=ngram,
                        ends=ends,
                        completion=out.sequences[0, len(prompt) :].tolist(),
                        score=out.sequences_scores[0].item(),
                    )
                )
    lines = ",\n".join(json.dumps(case) for case in cases)
    (HERE / "expected.json").write_text(f"[\n{lines}\n]\n")
    ended = sum(case["completion"][-1] in case["ends"] for case in cases)
    short = sum(len(case["completion"]) < NEW for case in cases)
    print(len(cases), "cases,", ended, "ended by a token,", short, "shorter than", NEW)


main()
