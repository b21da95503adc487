"""The token ids that other tokenizers give the lines of main.rs, as a count and a digest.

usage: python3 ids.py FOLDER MIRROR [FILE.gguf]

FOLDER is smollm2-135m-instruct as the catalog makes it, MIRROR the folder of datasets, FILE.gguf the file that the
folder was made of. Needs transformers 4.57.6; with FILE.gguf also xllamacpp, whose llama.cpp reads tokens, merges and
pre-tokenizer from that file itself.
"""

import gzip
import hashlib
import json
import pathlib
import sys
import urllib.request

LINES_PER_FILE = 1250
FILES = [
    "diasafety/train",
    "topical-chat/train",
    "synthetic-persona-chat/train",
    "hh-harmless-base/train",
    "decode/dialogues-train",
    "toxicity-prompts/toxic",
    "summeval/train",
    "squality-human-eval/documents",
]
# Blocks of characters from which odd lines are drawn: first, and one past the last.
# Some control characters and the planes from 4 have bytes that the vocabulary lacks.
BLOCKS = [
    (0x01, 0x20),
    (0x20, 0x7F),
    (0x30, 0x3A),
    (0xA0, 0x250),
    (0x300, 0x370),
    (0x370, 0x600),
    (0x600, 0x700),
    (0x900, 0x980),
    (0x1E00, 0x2070),
    (0x2150, 0x2190),
    (0x2460, 0x2500),
    (0x3000, 0x3100),
    (0x4E00, 0x5000),
    (0xAC00, 0xB000),
    (0xFE00, 0xFF80),
    (0x1D400, 0x1D800),
    (0x1F300, 0x1F650),
    (0x40000, 0x40100),
]
ODD_LINES = 2000


def strings(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)
    elif isinstance(value, dict):
        for inner in value.values():
            yield from strings(inner)


def real_lines(mirror):
    """The first distinct lines of each file, in its order."""
    seen = set()
    for name in FILES:
        count = 0
        with gzip.open(pathlib.Path(mirror) / f"{name}.jsonl.gz", "rt", encoding="utf-8", newline="\n") as rows:
            lines = (line for row in rows for text in strings(json.loads(row)) for line in text.split("\n"))
            for line in lines:
                if line and line not in seen:
                    seen.add(line)
                    yield line
                    count += 1
                    if count == LINES_PER_FILE:
                        break


def odd_lines():
    """Characters of all blocks next to each other, with spaces between, drawn by a congruential generator."""
    state = 1

    def draw(below):
        nonlocal state
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        return (state >> 33) % below

    for _ in range(ODD_LINES):
        line = ""
        for _ in range(1 + draw(40)):
            first, end = BLOCKS[draw(len(BLOCKS))]
            line += chr(first + draw(end - first)) + " " * (draw(4) // 3)
        yield line


def report(name, all_ids):
    text = "".join(" ".join(map(str, ids)) + "\n" for ids in all_ids)
    n_tokens = sum(map(len, all_ids))
    print(f"{name}: {len(all_ids)} lines, {n_tokens} tokens, {hashlib.sha256(text.encode()).hexdigest()}")


def llama_cpp(path, lines):
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.verbosity = path, 256, 0
    server = xllamacpp.Server(params)

    def ids(line):
        body = json.dumps({"content": line, "add_special": False, "parse_special": False}).encode()
        request = urllib.request.Request(
            server.listening_address + "/tokenize", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)["tokens"]

    return [ids(line) for line in lines]


def main(folder, mirror, gguf=None):
    sets = {"real": list(real_lines(mirror)), "odd": list(odd_lines())}
    theirs = {}
    try:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder)
        for name, lines in sets.items():
            theirs[name] = [tokenizer(line, add_special_tokens=False)["input_ids"] for line in lines]
            report(f"transformers, {name}", theirs[name])
    except ImportError:
        print("transformers is not installed")
    if gguf is None:
        return
    for name, lines in sets.items():
        other = llama_cpp(gguf, lines)
        report(f"llama.cpp, {name}", other)
        differ = [n for n, (a, b) in enumerate(zip(other, theirs.get(name, other))) if a != b]
        print(f"  {len(differ)} lines differ from transformers", [ascii(lines[n]) for n in differ[:5]])


main(*sys.argv[1:])
