"""A small experiment as a user of the Hugging Face stack writes it: tokenise, train with `Trainer`, save, `generate`.

    python end_to_end.py MODEL EXAMPLES PROMPTS FOLDER STEPS BATCH NEW_TOKENS

Examples and prompts are JSON Lines with `prompt` and `completion`. Replies are written to FOLDER/replies.jsonl.
"""

import json
import sys
from pathlib import Path

import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

model_folder, examples, prompts, folder, steps, batch, new_tokens = sys.argv[1:]
folder = Path(folder)
tokenizer = AutoTokenizer.from_pretrained(model_folder)
model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)


def tokenise(one):
    prompt = tokenizer.bos_token + one["prompt"] + "<|sep|>"
    prompt = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    completion = tokenizer(one["completion"] + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
    return {"input_ids": prompt + completion, "labels": [-100] * len(prompt) + completion}


data = load_dataset("json", data_files=examples, split="train", cache_dir=str(folder / "cache"))
data = data.map(tokenise, remove_columns=data.column_names)
trainer = Trainer(
    model=model,
    args=TrainingArguments(
        output_dir=str(folder),
        max_steps=int(steps),
        per_device_train_batch_size=int(batch),
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        group_by_length=False,
        use_cpu=True,
        dataloader_pin_memory=False,
        logging_steps=10,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    ),
    data_collator=DataCollatorForSeq2Seq(tokenizer, padding=True),
    train_dataset=data,
)
trainer.train()
trainer.save_model(str(folder / "model"))
tokenizer.save_pretrained(str(folder / "model"))

model.eval()
tokenizer.padding_side = "left"
texts = [json.loads(line)["prompt"] for line in open(prompts)]
inputs = tokenizer([tokenizer.bos_token + text + "<|sep|>" for text in texts], return_tensors="pt", padding=True, add_special_tokens=False)
inputs.pop("token_type_ids", None)
with torch.inference_mode():
    made = model.generate(**inputs, max_new_tokens=int(new_tokens), do_sample=False)
with open(folder / "replies.jsonl", "w") as out:
    for row in tokenizer.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True):
        out.write(json.dumps({"reply": row}) + "\n")
print("done", flush=True)
