"""A small experiment as a user of the Hugging Face stack writes it: tokenise, train with `Trainer`, save, `generate`.

    python end_to_end.py MODEL EXAMPLES PROMPTS FOLDER SEEDS STEPS BATCH NEW_TOKENS

Examples and prompts are JSON Lines with `prompt` and `completion`. Model and replies of a seed are written to FOLDER/SEED.
"""

import json
import sys
from pathlib import Path

import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

model_folder, examples, prompts, folder, seeds, steps, batch, new_tokens = sys.argv[1:]
folder = Path(folder)
tokenizer = AutoTokenizer.from_pretrained(model_folder)


def tokenise(one):
    prompt = tokenizer.bos_token + one["prompt"] + "<|sep|>"
    prompt = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    completion = tokenizer(one["completion"] + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
    return {"input_ids": prompt + completion, "labels": [-100] * len(prompt) + completion}


def train(model, data, seed, output):
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(output),
            max_steps=int(steps),
            per_device_train_batch_size=int(batch),
            learning_rate=1e-4,
            lr_scheduler_type="constant",
            use_cpu=True,
            dataloader_pin_memory=False,
            logging_steps=10,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            seed=seed,
        ),
        data_collator=DataCollatorForSeq2Seq(tokenizer, padding=True),
        train_dataset=data,
    )
    trainer.train()
    trainer.save_model(str(output))
    tokenizer.save_pretrained(str(output))


def reply(model, output):
    model.eval()
    tokenizer.padding_side = "left"
    texts = [tokenizer.bos_token + json.loads(line)["prompt"] + "<|sep|>" for line in open(prompts)]
    inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    inputs.pop("token_type_ids", None)
    with torch.inference_mode():
        made = model.generate(**inputs, max_new_tokens=int(new_tokens), do_sample=False)
    with open(output / "replies.jsonl", "w") as out:
        for row in tokenizer.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True):
            out.write(json.dumps({"reply": row}) + "\n")


data = load_dataset("json", data_files=examples, split="train", cache_dir=str(folder / "cache"))
data = data.map(tokenise, remove_columns=data.column_names)
for seed in range(int(seeds)):
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    output = folder / str(seed)
    tokenizer.padding_side = "right"
    train(model, data, seed, output)
    reply(model, output)
print("done", flush=True)
