"""Writes the parity cases: small random checkpoints of every architecture, with the logits, loss, gradients and
greedy continuations that transformers computes from them.

    python crates/model/tests/parity/make.py [folder]

Made with torch 2.11.0, transformers 4.57.6, safetensors 0.7; attention `sdpa` unless the case says
otherwise, one thread. The folder is `crates/model/tests/parity/cases` unless another is named; what lies in it is
replaced. One folder a case:

    config.json, model.safetensors   the checkpoint, or several shards and their index
    inputs.json                      input_ids, attention_mask, labels (-100 is off), each [B][T]
    expected.safetensors             logits [B, T, V]; loss: mean over labels; grad.<parameter>; greedy [B, 12]: what
                                     follows the real tokens of each row when every token is the most probable one

Positions count real tokens. In f64 transformers still rounds RMS norms and rotary angles to f32; cases whose name
ends in `_f64_exact` were computed with both in f64.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

VOCAB, NEW = 32, 12

SMALL = dict(
    vocab_size=VOCAB,
    hidden_size=16,
    intermediate_size=10,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=64,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
    rope_theta=100.0,
)

LLAMA3 = dict(
    rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16
)
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=16, beta_fast=4.0, beta_slow=0.5)
MSCALES = dict(
    rope_type="yarn", factor=8.0, original_max_position_embeddings=8, mscale=0.7, mscale_all_dim=0.3, truncate=False
)
GPT2 = dict(
    vocab_size=VOCAB, n_positions=24, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2, pad_token_id=0
)

# name: (model type, fields, whether to compute in f64, how it is saved: `wide` in f64 too; or `attention`, or the
# position that padding is given, which is otherwise that of the last real token)
CASES = {
    "llama_tied_f32": ("llama", dict(tie_word_embeddings=True), False, {}),
    "llama_tied_f64": ("llama", dict(tie_word_embeddings=True), True, dict(wide=True)),
    "llama_tied_f64_exact": ("llama", dict(tie_word_embeddings=True), True, {}),
    "llama_biases_f32": ("llama", dict(attention_bias=True, mlp_bias=True), False, {}),
    "llama_biases_f64": ("llama", dict(attention_bias=True, mlp_bias=True), True, {}),
    "llama_head_width_f32": ("llama", dict(num_attention_heads=4, num_key_value_heads=2, head_dim=6, hidden_act="gelu"), False, {}),
    "llama_linear_f32": ("llama", dict(rope_scaling=dict(rope_type="linear", factor=2.5)), False, {}),
    "llama_linear_f64": ("llama", dict(rope_scaling=dict(rope_type="linear", factor=2.5)), True, {}),
    "llama_llama3_f32": ("llama", dict(rope_scaling=LLAMA3), False, {}),
    "llama_llama3_f64": ("llama", dict(rope_scaling=LLAMA3), True, {}),
    "llama_yarn_f32": ("llama", dict(rope_scaling=YARN), False, {}),
    "llama_yarn_f64": ("llama", dict(rope_scaling=YARN), True, {}),
    "llama_yarn_mscale_f64": ("llama", dict(rope_scaling=MSCALES), True, {}),
    "mistral_window_f32": ("mistral", dict(sliding_window=4), False, {}),
    "mistral_window_f64": ("mistral", dict(sliding_window=4), True, {}),
    "mistral_no_window_f32": ("mistral", dict(sliding_window=None), False, {}),
    "qwen2_f32": ("qwen2", dict(tie_word_embeddings=True), False, {}),
    "qwen2_f64": ("qwen2", {}, True, {}),
    "qwen2_sliding_f32": ("qwen2", dict(use_sliding_window=True, sliding_window=3, max_window_layers=1), False, {}),
    "qwen2_sliding_f64": ("qwen2", dict(use_sliding_window=True, sliding_window=3, max_window_layers=1), True, {}),
    "phi3_f32": ("phi3", dict(partial_rotary_factor=0.67, sliding_window=5), False, {}),
    "phi3_f64": ("phi3", dict(partial_rotary_factor=0.5, sliding_window=5), True, {}),
    "gpt2_f32": ("gpt2", GPT2, False, {}),
    "gpt2_f64": ("gpt2", dict(GPT2, n_inner=22, activation_function="relu"), True, {}),
    "gpt2_bare_f32": ("gpt2", dict(GPT2, n_inner=20), False, dict(bare=True)),
    "llama_sharded_f32": ("llama", {}, False, dict(max_shard_size="8KB")),
    "qwen2_sharded_f64": ("qwen2", dict(tie_word_embeddings=True), True, dict(max_shard_size="12KB", wide=True)),
    "mistral_window_of_one_f32": ("mistral", dict(sliding_window=1), False, {}),
    "llama_eager_f32": ("llama", {}, False, dict(attention="eager")),
    "gpt2_padding_at_one_f32": ("gpt2", GPT2, False, dict(padding_at=1)),
}

# Lengths of padding on the left, real tokens, padding on the right.
ROWS = [(0, 10, 0), (4, 6, 0), (0, 7, 3), (1, 8, 1)]


def randomise(model):
    """Every parameter, biases and norms too, with a spread that leaves logits and attention far from flat."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 1 and "bias" not in name:
                p.copy_(1 + 0.3 * torch.randn_like(p))
            elif p.dim() == 1:
                p.copy_(0.3 * torch.randn_like(p))
            else:
                p.copy_(0.35 * torch.randn_like(p))


def compute_throughout_in_f64():
    """Takes the casts to f32 out of norms and rotary positions; the formulas stay transformers' own."""
    llama = transformers.models.llama.modeling_llama

    def norm(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))

    def rotary(self, x, position_ids):
        dim = self.config.head_dim
        frequencies = 1.0 / self.config.rope_theta ** (torch.arange(0, dim, 2, dtype=x.dtype) / dim)
        angles = position_ids[:, :, None].to(x.dtype) * frequencies
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos(), angles.sin()

    before = llama.LlamaRMSNorm.forward, llama.LlamaRotaryEmbedding.forward
    llama.LlamaRMSNorm.forward, llama.LlamaRotaryEmbedding.forward = norm, rotary
    return lambda: (
        setattr(llama.LlamaRMSNorm, "forward", before[0]),
        setattr(llama.LlamaRotaryEmbedding, "forward", before[1]),
    )


def inputs():
    ids, mask, labels = [], [], []
    for row, (left, real, right) in enumerate(ROWS):
        real_ids = torch.randint(0, VOCAB, (real,)).tolist()
        ids.append([0] * left + real_ids + [0] * right)
        mask.append([0] * left + [1] * real + [0] * right)
        # The first tokens are a prompt, but for one row: there the padding before the first token predicts it.
        prompt = 0 if row == 1 else 2
        labels.append([-100] * (left + prompt) + real_ids[prompt:] + [-100] * right)
    return dict(input_ids=ids, attention_mask=mask, labels=labels)


def greedy(model, ids, mask):
    rows = []
    for row, real in zip(ids, mask):
        tokens = [t for t, m in zip(row, real) if m]
        for _ in range(NEW):
            with torch.no_grad():
                tokens.append(model(torch.tensor([tokens])).logits[0, -1].argmax().item())
        rows.append(tokens[-NEW:])
    return torch.tensor(rows)


def make(folder, model_type, fields, f64, saving):
    config = transformers.CONFIG_MAPPING[model_type](**(fields if model_type == "gpt2" else dict(SMALL, **fields)))
    attention, padding_at = saving.pop("attention", "sdpa"), saving.pop("padding_at", None)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    randomise(model)
    bare, wide = saving.pop("bare", False), saving.pop("wide", False)
    if f64 and wide:
        model = model.double()
    (model.transformer if bare else model).save_pretrained(folder, **saving)
    # The weights are drawn in f32, so nothing is lost by storing most of them so.
    model = model.to(torch.float64 if f64 else torch.float32)
    given = inputs()
    ids, mask, labels = (torch.tensor(given[k]) for k in ("input_ids", "attention_mask", "labels"))
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    if padding_at is not None:
        positions = positions.masked_fill(mask == 0, padding_at)
    out = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
    # In the model's kind: transformers' own loss is computed in f32.
    shifted, targets = out.logits[:, :-1].reshape(-1, VOCAB), labels[:, 1:].reshape(-1)
    loss = torch.nn.functional.cross_entropy(shifted, targets, ignore_index=-100)
    loss.backward()
    expected = {"logits": out.logits.detach(), "loss": loss.detach(), "greedy": greedy(model, ids, mask)}
    expected.update({f"grad.{n}": p.grad for n, p in model.named_parameters()})
    (folder / "generation_config.json").unlink(missing_ok=True)
    if bare:
        # As the first gpt2 on the Hub: no prefix, a language model's class, buffers with the weights.
        path = folder / "config.json"
        path.write_text(json.dumps(dict(json.loads(path.read_text()), architectures=["GPT2LMHeadModel"]), indent=2))
        state = {k: v.clone() for k, v in model.transformer.state_dict().items()}
        n = config.n_positions
        for i in range(config.n_layer):
            state[f"h.{i}.attn.bias"] = torch.ones(n, n, dtype=torch.uint8).tril().view(1, 1, n, n)
            state[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "inputs.json").write_text(json.dumps(given) + "\n")
    save_file({k: v.contiguous() for k, v in expected.items()}, folder / "expected.safetensors")
    logits = out.logits.detach()
    print(f"{folder.name}: loss {loss.item():.3f}, spread of logits {logits.std().item():.2f}")


def main():
    torch.set_num_threads(1)
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "cases"
    shutil.rmtree(target, ignore_errors=True)
    for seed, (name, (model_type, fields, f64, saving)) in enumerate(CASES.items()):
        folder = target / name
        folder.mkdir(parents=True)
        torch.manual_seed(seed)
        restore = compute_throughout_in_f64() if name.endswith("_exact") else lambda: None
        make(folder, model_type, dict(fields), f64, dict(saving))
        restore()


if __name__ == "__main__":
    main()
