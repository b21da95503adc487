"""Writes the cases of the test `lora`: small checkpoints, adapters on them as PEFT stores them, and what PEFT computes.

    pip install torch==2.11.0 transformers==4.57.6 peft==0.21.2
    PYTHONHASHSEED=0 python make.py     # writes cases/ beside this file; PEFT stores names in the order of a hash

One folder a case: `base/` (a Hugging Face folder), `adapter/` (what `save_pretrained` writes), `inputs.json` (`input_ids`
and, for a classifier, `lengths`) and `expected.safetensors`: `logits`, `base_logits` (adapter off), `merged_logits`, `loss`
and the gradient of each tensor of the adapter, by the name it is stored under. Everything is random and far from flat.
"""

import json
import shutil
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

HERE = Path(__file__).parent / "cases"
VOCAB, WIDTH, ROWS, PAD = 23, 7, 2, 0


def llama(labels=None):
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=12,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        max_position_embeddings=16,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=1,
        eos_token_id=2,
        attn_implementation="eager",
    )
    if labels is None:
        return LlamaForCausalLM(config)
    config.num_labels = labels
    return LlamaForSequenceClassification(config)


def qwen2():
    config = Qwen2Config(
        vocab_size=VOCAB,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=16,
        tie_word_embeddings=True,
        attn_implementation="eager",
    )
    return Qwen2ForCausalLM(config)


def phi3():
    config = Phi3Config(
        vocab_size=VOCAB,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=16,
        original_max_position_embeddings=16,
        pad_token_id=PAD,
        bos_token_id=1,
        eos_token_id=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_implementation="eager",
    )
    return Phi3ForCausalLM(config)


def gpt2():
    config = GPT2Config(
        vocab_size=VOCAB,
        n_embd=8,
        n_layer=2,
        n_head=2,
        n_positions=16,
        bos_token_id=1,
        eos_token_id=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        attn_implementation="eager",
    )
    return GPT2LMHeadModel(config)


F64, F32 = torch.float64, torch.float32
CASES = {
    # name: (model, dtype, adapter)
    "llama_layers": (
        llama,
        F64,
        dict(r=2, lora_alpha=3, target_modules=["q_proj", "v_proj"], layers_to_transform=[1]),
    ),
    "llama_all_linear": (llama, F32, dict(r=3, lora_alpha=6, target_modules="all-linear")),
    "llama_rslora": (
        llama,
        F64,
        dict(r=4, lora_alpha=5, target_modules=["o_proj", "mlp.down_proj"], use_rslora=True, lora_dropout=0.25),
    ),
    "gpt2_all_linear": (gpt2, F64, dict(r=2, lora_alpha=4, target_modules="all-linear")),
    "gpt2_attention": (gpt2, F32, dict(r=3, lora_alpha=2, target_modules=["c_attn"], fan_in_fan_out=True)),
    "qwen2_biases": (qwen2, F32, dict(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"])),
    "phi3_fused": (phi3, F32, dict(r=2, lora_alpha=4, target_modules="all-linear")),
    "classifier_one": (lambda: llama(1), F64, dict(r=2, lora_alpha=4, target_modules="all-linear")),
    "classifier_three": (lambda: llama(3), F64, dict(r=2, lora_alpha=4, target_modules=["up_proj", "k_proj"])),
}


def randomise(model, spread):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "norm" in name.split(".")[-2] or "ln_" in name and name.endswith("weight") else 0.0
            parameter.copy_(centre + spread * torch.randn_like(parameter))


def outputs(model, ids, lengths):
    mask = torch.arange(ids.shape[1])[None] < lengths[:, None]
    return model(input_ids=ids, attention_mask=mask.long()).logits


def loss_of(logits, ids, classify):
    if classify:
        # Any smooth number of all logits will do; this one depends on every label differently.
        return (logits * torch.linspace(1.0, 2.0, logits.numel(), dtype=logits.dtype).view_as(logits)).tanh().sum()
    shifted = logits[:, :-1].reshape(-1, VOCAB)
    return torch.nn.functional.cross_entropy(shifted, ids[:, 1:].reshape(-1))


def make(name, build, dtype, adapter):
    folder = HERE / name
    model = build().to(dtype).eval()
    randomise(model, 0.5)
    model.save_pretrained(folder / "base")
    (folder / "base" / "generation_config.json").unlink(missing_ok=True)
    classify = name.startswith("classifier")
    ids = torch.randint(3, VOCAB, (ROWS, WIDTH))
    lengths = torch.tensor([WIDTH, WIDTH - 3 if classify else WIDTH])
    ids[torch.arange(WIDTH)[None] >= lengths[:, None]] = PAD
    expected = {"base_logits": outputs(model, ids, lengths).detach().clone()}

    config = LoraConfig(task_type="SEQ_CLS" if classify else "CAUSAL_LM", **adapter)
    model = get_peft_model(model, config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.4 * torch.randn_like(parameter))
    model.save_pretrained(folder / "adapter")
    (folder / "adapter" / "README.md").unlink()
    logits = outputs(model, ids, lengths)
    loss = loss_of(logits, ids, classify)
    loss.backward()
    stored = load_file(folder / "adapter" / "adapter_model.safetensors")
    gradients = {
        n.replace(".default", "").replace(".modules_to_save", ""): p.grad
        for n, p in model.named_parameters()
        if p.requires_grad
    }
    assert gradients.keys() == stored.keys(), gradients.keys() ^ stored.keys()
    expected |= {"logits": logits.detach(), "loss": loss.detach()}
    expected |= {f"grad.{n}": g for n, g in gradients.items()}
    expected["merged_logits"] = outputs(model.merge_and_unload(), ids, lengths).detach()
    save_file({n: t.contiguous() for n, t in expected.items()}, folder / "expected.safetensors")
    inputs = {"input_ids": ids.tolist(), "lengths": lengths.tolist()}
    (folder / "inputs.json").write_text(json.dumps(inputs) + "\n")


if __name__ == "__main__":
    shutil.rmtree(HERE, ignore_errors=True)
    for case, arguments in CASES.items():
        torch.manual_seed(7)
        make(case, *arguments)
