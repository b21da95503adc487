"""Loads adapters that this project wrote with PEFT, and compares what they compute.

    pip install torch==2.11.0 transformers==4.57.6 peft==0.21.2
    cargo test -p unsay-model --test lora        # writes target/tmp/adapters
    python check_adapter.py target/tmp/adapters

Prints the largest difference of logits for each adapter, relative to the largest logit, and fails where it is more than
rounding.
"""

import json
import sys
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

CASES = Path(__file__).parent / "cases"


def difference(case, folder):
    inputs = json.loads((CASES / case / "inputs.json").read_text())
    ids, lengths = torch.tensor(inputs["input_ids"]), torch.tensor(inputs["lengths"])
    expected = load_file(folder / "logits.safetensors")["logits"]
    auto = AutoModelForSequenceClassification if case.startswith("classifier") else AutoModelForCausalLM
    base = auto.from_pretrained(CASES / case / "base", dtype=expected.dtype, attn_implementation="eager")
    model = PeftModel.from_pretrained(base, folder).eval()
    mask = torch.arange(ids.shape[1])[None] < lengths[:, None]
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask.long()).logits
    return ((logits - expected).abs().max() / expected.abs().max()).item(), expected.dtype


def main():
    failed, compared = 0, 0
    for folder in sorted(Path(sys.argv[1]).glob("*/*")):
        found, dtype = difference(folder.parent.name, folder)
        failed += not found < (1e-10 if dtype == torch.float64 else 1e-5)
        compared += 1
        print(f"{folder.parent.name:18} {folder.name:18} {dtype} {found:.1e}")
    print(f"{compared} compared, {failed} differ")
    sys.exit(failed > 0 or compared == 0)


if __name__ == "__main__":
    main()
