"""How a way says to compute, and the model that computes so."""

import contextlib

import torch
from transformers import LlamaForCausalLM


def weight_kind(way):
    """The kind that weights are held in: `fp32` and `autocast` in f32, `bf16` in nothing but bf16."""
    return {"fp32": torch.float32, "autocast": torch.float32, "bf16": torch.bfloat16}[way.split("+")[0]]


def compute_kind(way):
    """The kind of products, in PyTorch's words."""
    return "float32" if way.split("+")[0] == "fp32" else "bfloat16"


def autocast(way):
    """The block that a forward pass stands in."""
    if way.split("+")[0] == "autocast":
        return torch.autocast("cpu", torch.bfloat16)
    return contextlib.nullcontext()


def causal_model(folder, way):
    return LlamaForCausalLM.from_pretrained(folder, dtype=weight_kind(way), attn_implementation="sdpa")
