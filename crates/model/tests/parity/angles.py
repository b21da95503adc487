"""How far transformers' rotary angles, which are f32, are from angles in f64 that are rounded once, and what that does to
logits of a model with random weights and the shape of SmolLM2-135M.

    python crates/model/tests/parity/angles.py

Made with torch 2.11.0 and transformers 4.57.6. A minute on one core.
"""

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

THETA, WIDTH, VOCAB = 100_000.0, 64, 2000


def frequencies(kind):
    return 1.0 / THETA ** (torch.arange(0, WIDTH, 2, dtype=torch.int64).to(kind) / WIDTH)


def exact(self, x, position_ids):
    angles = position_ids[:, :, None].double() * frequencies(torch.double)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


def main():
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for position in (64, 500, 1000):
        angle = torch.tensor(float(position)) * frequencies(torch.float)
        off = (angle.double() - position * frequencies(torch.double)).abs().max().item()
        print(f"position {position}: angles off by at most {off:.1e}")
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        rope_theta=THETA,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        initializer_range=0.05,
    )
    model, theirs = LlamaForCausalLM(config).eval(), LlamaRotaryEmbedding.forward
    for width in (64, 512, 1024):
        ids = torch.randint(0, VOCAB, (1, width))
        with torch.no_grad():
            LlamaRotaryEmbedding.forward = theirs
            before = model(ids).logits
            LlamaRotaryEmbedding.forward = exact
            after = model(ids).logits
        part = ((before - after).abs().max() / before.abs().max()).item()
        print(f"{width} tokens: logits differ by {part:.1e} of the largest")


if __name__ == "__main__":
    main()
