"""Loads folders that this project wrote with transformers, and compares logits.

    UNSAY_EXPORT_DIR=exports cargo test -p unsay-model --test parity parity_survives_export
    python crates/model/tests/parity/check_export.py exports

Each folder in `exports` is one export: a model folder, `inputs.json` (`input_ids`, `attention_mask`) and
`logits.safetensors` with the logits [B, T, V] that this project computes from it. Positions count real tokens.
Says for each which class transformers loads it with and the largest difference as a part of the largest logit; ends
with an error when one is beyond 1e-5, or when nothing was compared. Made for torch 2.11.0, transformers 4.57.6.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM


def check(folder):
    given = json.loads((folder / "inputs.json").read_text())
    ids, mask = torch.tensor(given["input_ids"]), torch.tensor(given["attention_mask"])
    expected = load_file(folder / "logits.safetensors")["logits"]
    stored = AutoConfig.from_pretrained(folder).torch_dtype
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, torch_dtype=expected.dtype, attn_implementation="sdpa", output_loading_info=True
    )
    left = {k: v for k, v in info.items() if v}
    with torch.no_grad():
        out = model.eval()(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0))
    real = mask.bool()
    worst = ((out.logits - expected)[real].abs().max() / expected[real].abs().max()).item()
    print(f"{folder.name}: {type(model).__name__}, stored as {stored}, {worst:.1e} of the largest logit {left or ''}")
    return worst <= 1e-5 and not left


def main():
    torch.set_num_threads(1)
    folders = sorted(p for p in Path(sys.argv[1]).iterdir() if p.is_dir())
    results = [check(folder) for folder in folders]
    print(f"{sum(results)} of {len(results)} exports equal")
    sys.exit(0 if results and all(results) else 1)


if __name__ == "__main__":
    main()
