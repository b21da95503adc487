"""What transformers computes with SmolLM2-135M-Instruct, for the tests of this crate.

usage: python3 smollm2.py FOLDER FACTS.json [CASE]

FOLDER is smollm2-135m-instruct as the catalog of models makes it. FACTS.json, beside this script as smollm2.json, gets
what tests/smollm2.rs compares: tokens, a loss, and single numbers of logits and gradients. CASE gets a folder for the
parity test (`UNSAY_PARITY_DIR`) with all logits and all the gradients of one layer, of the ends and of the norms.
Needs torch 2.11.0 and transformers 4.57.6; everything is computed in float32, on one thread.
"""

import json
import os
import shutil
import sys

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

NEW_TOKENS = 32
QUESTIONS = [
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "My neighbour shouted at me today. What should I say to him?",
    "Count from 1 to 12.",
    "Was ist der Unterschied zwischen Hund und Katze?",
    "Give me a python function that adds two numbers.",
]
# Taught in the loss: the reply alone.
REPLY = "The capital of France is Paris."
GRADIENTS = [
    "model.embed_tokens.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.0.self_attn.k_proj.weight",
    "model.layers.0.input_layernorm.weight",
    "model.layers.14.self_attn.v_proj.weight",
    "model.layers.14.self_attn.o_proj.weight",
    "model.layers.29.mlp.gate_proj.weight",
    "model.layers.29.mlp.up_proj.weight",
    "model.layers.29.mlp.down_proj.weight",
    "model.norm.weight",
]


def greedy(model, prompt, end):
    """Written out, so that nothing of a generation's settings takes part; with the cache, as users run it."""
    ids, cache, made = torch.tensor([prompt]), None, []
    while len(made) < NEW_TOKENS:
        out = model(ids, past_key_values=cache, use_cache=True)
        token = int(out.logits[0, -1].argmax())
        if token == end:
            return made, True
        made.append(token)
        ids, cache = torch.tensor([[token]]), out.past_key_values
    return made, False


def main(folder, facts_path, case=None):
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    turns = [[{"role": "user", "content": question}] for question in QUESTIONS]
    prompts = [tokenizer.apply_chat_template(turn, add_generation_prompt=True) for turn in turns]
    completions = []
    with torch.no_grad():
        for question, prompt in zip(QUESTIONS, prompts):
            made, finished = greedy(model, prompt, tokenizer.eos_token_id)
            completions.append({"prompt": prompt, "completion": made, "finished": finished})
            print(f"{question}\n    {tokenizer.decode(made)!r}")
    reply = tokenizer(REPLY, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    ids = prompts[0] + reply
    labels = [-100] * len(prompts[0]) + reply
    out = model(torch.tensor([ids]), labels=torch.tensor([labels]))
    out.loss.backward()
    logits = out.logits.detach()[0]
    gradients = {name: model.get_parameter(name).grad for name in GRADIENTS}
    samples = [[position, token] for position in range(len(ids)) for token in (0, 2, 260, 28, 7042, 30000, 49151)]
    facts = {
        "made_with": f"torch {torch.__version__.split('+')[0]}, transformers 4.57.6, float32",
        "greedy": completions,
        "input_ids": ids,
        "labels": labels,
        "loss": out.loss.item(),
        "largest_logit": logits.abs().max().item(),
        "logits": [[position, token, logits[position, token].item()] for position, token in samples],
        "log_sum_exp": logits.logsumexp(-1).tolist(),
        "gradients": {},
    }
    for name, gradient in gradients.items():
        flat = gradient.flatten()
        largest = flat.abs().topk(8).indices.sort().values.tolist()
        facts["gradients"][name] = {
            "norm": flat.double().norm().item(),
            "largest": flat.abs().max().item(),
            "entries": [[index, flat[index].item()] for index in largest],
        }
    with open(facts_path, "w", encoding="utf-8", newline="\n") as file:
        parts = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in facts.items()]
        file.write("{\n" + ",\n".join(parts) + "\n}\n")
    if case is None:
        return
    os.makedirs(case, exist_ok=True)
    for name in os.listdir(folder):
        shutil.copy(os.path.join(folder, name), case)
    # The same tokens twice, padded on either side.
    pad, n_pad = tokenizer.pad_token_id, 3
    rows = {
        "input_ids": [[pad] * n_pad + ids, ids + [pad] * n_pad],
        "attention_mask": [[0] * n_pad + [1] * len(ids), [1] * len(ids) + [0] * n_pad],
        "labels": [[-100] * n_pad + labels, labels + [-100] * n_pad],
    }
    with open(os.path.join(case, "inputs.json"), "w", encoding="utf-8") as file:
        json.dump(rows, file)
    mask = torch.tensor(rows["attention_mask"])
    model.zero_grad()
    out = model(
        torch.tensor(rows["input_ids"]),
        attention_mask=mask,
        position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
        labels=torch.tensor(rows["labels"]),
    )
    out.loss.backward()
    expected = {"logits": out.logits.detach(), "loss": out.loss.detach()}
    for name in GRADIENTS:
        expected[f"grad.{name}"] = model.get_parameter(name).grad
    expected = {name: value.contiguous() for name, value in expected.items()}
    save_file(expected, os.path.join(case, "expected.safetensors"))


main(*sys.argv[1:])
