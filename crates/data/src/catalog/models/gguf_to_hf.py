"""Makes a Hugging Face folder from a GGUF file of the llama architecture.

usage: gguf_to_hf.py FILE.gguf FOLDER NAME PROVENANCE

Quantised weights are expanded to float32, which holds every expanded value exactly. Equal input gives
equal bytes. What is not understood is refused by name: another architecture, another tokenizer, a
quantisation that the package `gguf` does not expand, a key or a tensor that would change the maths.
Needs the packages `gguf`, `numpy` and `pyyaml`; progress goes to standard output, the reason of a
failure to standard error.
"""

import json
import os
import sys

import gguf
import numpy as np

# The keys of the architecture that config.json expresses below.
UNDERSTOOD = {
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "vocab_size",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "rope.dimension_count",
    "rope.freq_base",
}

# Pre-tokenizers by their name in GGUF. `smollm` takes each digit for itself and then splits as GPT-2 does.
PRE_TOKENIZERS = {
    "smollm": [
        {"type": "Digits", "individual_digits": True},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    ],
}

# Kinds of tokens in GGUF.
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4

# Names inside a block: GGUF, Hugging Face.
BLOCK = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
]


class Refused(Exception):
    """The file cannot be converted, and why."""


class Keys:
    """The metadata of a GGUF file."""

    def __init__(self, reader):
        self.fields = reader.fields

    def get(self, name, default=None):
        return self.need(name) if name in self.fields else default

    def need(self, name):
        if name not in self.fields:
            raise Refused(f"the key `{name}` is missing")
        try:
            return self.fields[name].contents()
        except UnicodeDecodeError as error:
            raise Refused(f"`{name}`: not UTF-8") from error

    def expect(self, name, expected, absent):
        got = self.get(name, absent)
        if got != expected:
            raise Refused(f"`{name}`: only {expected!r} is supported, got {got!r}")


def shortest(value):
    """A float32 as the shortest decimal that gives it back: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def make_config(keys, n_tokens, names):
    keys.expect("general.architecture", "llama", None)
    for name in keys.fields:
        if name.startswith("llama.") and name.removeprefix("llama.") not in UNDERSTOOD:
            raise Refused(f"`{name}` is not supported, got {keys.get(name)!r}")
    hidden = keys.need("llama.embedding_length")
    heads = keys.need("llama.attention.head_count")
    if not isinstance(heads, int) or heads < 1:
        raise Refused(f"`llama.attention.head_count`: expected one number from 1, got {heads!r}")
    head_dim = keys.get("llama.attention.key_length", hidden // heads)
    for name in ("llama.attention.value_length", "llama.rope.dimension_count"):
        keys.expect(name, head_dim, head_dim)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": keys.get("llama.vocab_size", n_tokens),
        "hidden_size": hidden,
        "intermediate_size": keys.need("llama.feed_forward_length"),
        "num_hidden_layers": keys.need("llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.get("llama.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": keys.need("llama.context_length"),
        "rope_theta": shortest(keys.get("llama.rope.freq_base", 10000.0)),
        "rms_norm_eps": shortest(keys.need("llama.attention.layer_norm_rms_epsilon")),
        "tie_word_embeddings": "output.weight" not in names,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": keys.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": keys.need("tokenizer.ggml.eos_token_id"),
        "torch_dtype": "float32",
    }


def expected_tensors(config):
    """Pairs of GGUF name and Hugging Face name with the shape, in the order of the weight file."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    values = config["num_key_value_heads"] * config["head_dim"]
    shapes = {
        "attn_norm": (hidden,),
        "attn_q": (queries, hidden),
        "attn_k": (values, hidden),
        "attn_v": (values, hidden),
        "attn_output": (hidden, queries),
        "ffn_norm": (hidden,),
        "ffn_gate": (inner, hidden),
        "ffn_up": (inner, hidden),
        "ffn_down": (hidden, inner),
    }
    vocabulary = (config["vocab_size"], hidden)
    yield "token_embd.weight", "model.embed_tokens.weight", vocabulary
    for layer in range(config["num_hidden_layers"]):
        for ours, theirs in BLOCK:
            yield f"blk.{layer}.{ours}.weight", f"model.layers.{layer}.{theirs}.weight", shapes[ours]
    yield "output_norm.weight", "model.norm.weight", (hidden,)
    if not config["tie_word_embeddings"]:
        yield "output.weight", "lm_head.weight", vocabulary


def rows_in_halves(rows, heads):
    """Undoes the order of GGUF, in which the two rows that are rotated together are neighbours.

    Hugging Face has the first rows of all pairs in the first half of a head, the second in the other.
    """
    pairs = rows.reshape(heads, rows.shape[0] // heads // 2, 2, rows.shape[1])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def expand(tensor, heads):
    try:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as error:
        raise Refused(f"tensor `{tensor.name}`: {tensor.tensor_type.name} cannot be expanded") from error
    values = np.asarray(values, dtype="<f4")
    values = values if heads is None else rows_in_halves(values, heads)
    if not np.isfinite(values).all():
        raise Refused(f"tensor `{tensor.name}` holds NaN or infinity")
    return values


def write_weights(path, reader, config):
    """A safetensors file: length of the header, header, values; nothing in it depends on time or place."""
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    expected = list(expected_tensors(config))
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, theirs, shape in expected:
        if name not in tensors:
            raise Refused(f"the tensor `{name}` is missing")
        got = tuple(int(n) for n in reversed(tensors[name].shape))
        if got != shape:
            raise Refused(f"tensor `{name}`: expected shape {shape}, got {got}")
        start, end = end, end + 4 * int(np.prod(shape))
        header[theirs] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    others = sorted(set(tensors) - {name for name, _, _ in expected})
    if others:
        raise Refused(f"the tensor `{others[0]}` is not supported")
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name, _, _ in expected:
            kind = name.split(".")[2] if name.startswith("blk.") else None
            file.write(expand(tensors[name], heads.get(kind)).tobytes())


def make_tokenizer(keys):
    """`tokenizer.json` and the names of the tokens with a role."""
    keys.expect("tokenizer.ggml.model", "gpt2", None)
    pre = keys.need("tokenizer.ggml.pre")
    if pre not in PRE_TOKENIZERS:
        raise Refused(f"`tokenizer.ggml.pre`: only {sorted(PRE_TOKENIZERS)} are supported, got {pre!r}")
    for name in ("add_space_prefix", "add_bos_token", "add_eos_token"):
        keys.expect(f"tokenizer.ggml.{name}", False, False)
    tokens, kinds = keys.need("tokenizer.ggml.tokens"), keys.need("tokenizer.ggml.token_type")
    if len(set(tokens)) != len(tokens) or len(kinds) != len(tokens):
        raise Refused("`tokenizer.ggml.tokens`: expected distinct tokens, each with its kind")
    added = []
    for token, (content, kind) in enumerate(zip(tokens, kinds)):
        if kind == NORMAL:
            continue
        if kind not in (CONTROL, USER_DEFINED):
            raise Refused(f"token {token} {content!r} is of the kind {kind}, which is not supported")
        flags = {name: False for name in ("single_word", "lstrip", "rstrip", "normalized")}
        added.append({"id": token, "content": content, **flags, "special": kind == CONTROL})
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {content: token for token, content in enumerate(tokens)},
        "merges": keys.need("tokenizer.ggml.merges"),
    }
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": PRE_TOKENIZERS[pre]},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": model,
    }
    roles = {}
    for role, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        token = keys.get(f"tokenizer.ggml.{key}_token_id")
        if token is None:
            continue
        if not 0 <= token < len(tokens):
            raise Refused(f"`tokenizer.ggml.{key}_token_id`: expected below {len(tokens)}, got {token}")
        roles[f"{role}_token"] = tokens[token]
    return tokenizer, roles


def page(keys, name, provenance):
    licence = keys.get("general.license", "unknown")
    author = keys.get("general.organization", "not named in the file")
    return (
        f"---\nlicense: {licence}\n---\n\n# {name}\n\nMade from a GGUF file by unsay: {provenance}.\n\n"
        "The quantised weights were expanded to float32; nothing was trained, and what the quantisation lost\n"
        "is not restored. Tokenizer, chat template and special tokens are those of the file. The padding token is in\n"
        "generation_config.json and tokenizer_config.json, not in config.json: there it would take the token's row\n"
        "out of the embedding's gradient when transformers trains, also where the same token ends a turn.\n\n"
        f"Author of the model: {author}. Licence: {licence}.\n"
    )


def write_json(folder, name, value, **layout):
    with open(os.path.join(folder, name), "w", encoding="utf-8", newline="\n") as file:
        json.dump(value, file, ensure_ascii=False, **layout)
        file.write("\n")


def convert(source, folder, name, provenance):
    try:
        reader = gguf.GGUFReader(source)
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise Refused(f"not a GGUF file: {error}") from error
    keys = Keys(reader)
    keys.expect("general.architecture", "llama", None)
    tokenizer, roles = make_tokenizer(keys)
    n_tokens = len(tokenizer["model"]["vocab"])
    config = make_config(keys, n_tokens, {tensor.name for tensor in reader.tensors})
    if config["vocab_size"] < n_tokens:
        raise Refused(f"`llama.vocab_size`: expected at least {n_tokens}, got {config['vocab_size']}")
    n_weights = sum(int(np.prod(shape)) for _, _, shape in expected_tensors(config))
    print(f"expanding {n_weights / 1e6:.0f} million weights to {n_weights * 4 / 1e6:.0f} MB", flush=True)
    write_weights(os.path.join(folder, "model.safetensors"), reader, config)
    write_json(folder, "config.json", config, indent=2)
    # Not in config.json: there it makes transformers leave the token's row out of the embedding's gradient, and
    # chat models often pad with the token that ends a turn, which must be learnt.
    ids = {name: config[name] for name in ("bos_token_id", "eos_token_id")}
    ids["pad_token_id"] = keys.get("tokenizer.ggml.padding_token_id")
    write_json(folder, "generation_config.json", ids, indent=2)
    write_json(folder, "tokenizer.json", tokenizer)
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": False, **roles}
    about["clean_up_tokenization_spaces"] = False
    about["model_max_length"] = config["max_position_embeddings"]
    template = keys.get("tokenizer.chat_template")
    if template is not None:
        about["chat_template"] = template
    write_json(folder, "tokenizer_config.json", about, indent=2)
    write_json(folder, "special_tokens_map.json", roles, indent=2)
    with open(os.path.join(folder, "README.md"), "w", encoding="utf-8", newline="\n") as file:
        file.write(page(keys, name, provenance))


def main(arguments):
    if len(arguments) != 4:
        raise SystemExit("usage: gguf_to_hf.py FILE.gguf FOLDER NAME PROVENANCE")
    try:
        convert(*arguments)
    except Refused as error:
        raise SystemExit(f"`{os.path.basename(arguments[0])}`: {error}") from error


main(sys.argv[1:])
