"""From the start of a process to its first token, as a script of a user would do it: python start.py FOLDER PROMPT"""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, prompt = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
with torch.inference_mode():
    made = model.generate(**ids, max_new_tokens=1, do_sample=False)
print(tokenizer.decode(made[0, ids["input_ids"].shape[1] :]), flush=True)
