"""Writes tiny.gguf, a llama of random weights for the tests of gguf_to_hf.py.

usage: python3 make_tiny.py tiny.gguf          (packages gguf 0.19.0, numpy, pyyaml)

Two layers, two query heads on one key/value head, 32 wide; Q8_0 embedding, Q4_1 and F16 matrices; the 256
bytes, a few merges and three special tokens. Equal bytes each time.
"""

import sys

import gguf
import numpy as np

HIDDEN, INNER, HEADS, KV_HEADS, LAYERS = 32, 64, 2, 1, 2
HEAD = HIDDEN // HEADS


def byte_letters():
    """The visible letter that stands for each byte in a byte-level vocabulary."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in visible]
    letters = {byte: chr(byte) for byte in visible}
    return letters | {byte: chr(256 + n) for n, byte in enumerate(others)}


def main(path):
    letters = [letter for _, letter in sorted(byte_letters().items())]
    merges = ["Ġ t", "h e", "Ġt he", "a n", "an d", "1 2"]
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = specials + letters + [merge.replace(" ", "") for merge in merges]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_string("general.license", "mit")
    writer.add_string("general.organization", "nobody")
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(100.0)
    writer.add_rope_dimension_count(HEAD)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(specials) + [1] * (len(tokens) - len(specials)))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template("{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}")
    draw = np.random.Generator(np.random.PCG64(0))
    kinds = gguf.GGMLQuantizationType

    def add(name, shape, kind):
        values = draw.standard_normal(shape).astype(np.float32)
        stored = values if kind == kinds.F32 else gguf.quants.quantize(values, kind)
        writer.add_tensor(name, stored, raw_dtype=kind)

    add("token_embd.weight", (len(tokens), HIDDEN), kinds.Q8_0)
    for layer in range(LAYERS):
        shapes = {
            "attn_norm": (HIDDEN,),
            "attn_q": (HEADS * HEAD, HIDDEN),
            "attn_k": (KV_HEADS * HEAD, HIDDEN),
            "attn_v": (KV_HEADS * HEAD, HIDDEN),
            "attn_output": (HIDDEN, HEADS * HEAD),
            "ffn_norm": (HIDDEN,),
            "ffn_gate": (INNER, HIDDEN),
            "ffn_up": (INNER, HIDDEN),
            "ffn_down": (HIDDEN, INNER),
        }
        for name, shape in shapes.items():
            matrix = kinds.F16 if name == "attn_v" else kinds.Q4_1
            add(f"blk.{layer}.{name}.weight", shape, kinds.F32 if len(shape) == 1 else matrix)
    add("output_norm.weight", (HIDDEN,), kinds.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


main(sys.argv[1])
