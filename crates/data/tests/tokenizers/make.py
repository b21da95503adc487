"""Trains small tokenizers, saves them as Hugging Face folders, and records what transformers reads with them.

    python make.py

Needs transformers==4.57.6 and tokenizers==0.22.2. Each folder gets `expected.json`: ids of texts as the tokenizer reads
them, and of conversations by `apply_chat_template`.
"""

import json
import pathlib

import tokenizers
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

assert transformers.__version__ == "4.57.6", transformers.__version__
assert tokenizers.__version__ == "0.22.2", tokenizers.__version__

TEXTS = [
    "The baker sells bread in the morning and cake in the afternoon.",
    "What does the baker sell? The baker sells bread, of course!",
    "A good answer is short; a good question is shorter.",
    "In the morning the town is quiet, and the baker sings a song.",
    "Twelve loaves, 12 rolls and 3 cakes: naïve prices, said the café.",
    "system user assistant",
] * 4

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# As ChatML, with a token of its own behind a conversation that does not go on, and white space taken by the tokens.
ENDED = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>\\n' + message['content'] | trim + '<|end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)
# Without special tokens between the turns.
INSTRUCT = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + ' ' + eos_token }}"
    "{% else %}{{ raise_exception('no place for ' + message['role']) }}{% endif %}{% endfor %}"
)


def byte_level(specials, size):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, special_tokens=specials, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def metaspace(specials, size, first_only):
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    if first_only:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=specials + bytes_, show_progress=False)
    words = [word for text in TEXTS for word in text.replace(" ", " ▁").split(" ")]
    tokenizer.train_from_iterator(words, trainer)
    # The bytes are no special tokens: only the trainer knows to put them first by that name.
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in specials]
    return Tokenizer.from_str(json.dumps(state))


def folders():
    fast = transformers.PreTrainedTokenizerFast
    tokenizer = byte_level(["<|im_start|>", "<|im_end|>"], 400)
    yield "chatml", fast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token=None,
        chat_template=CHATML,
        clean_up_tokenization_spaces=False,
    )
    tokenizer = metaspace(["<unk>", "<s>", "</s>"], 420, True)
    tokens = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    tokenizer.add_special_tokens([AddedToken(token, rstrip=True, normalized=False) for token in tokens])
    yield "ended", fast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=ENDED,
        clean_up_tokenization_spaces=False,
    )
    tokenizer = metaspace(["<unk>", "<s>", "</s>"], 400, False)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    yield "instruct", fast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<unk>",
        chat_template=INSTRUCT,
        clean_up_tokenization_spaces=False,
    )
    tokenizer = byte_level(["<|endoftext|>"], 380)
    yield "plain", fast(
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )


def say(*turns):
    return [{"role": role, "content": content} for role, content in turns]


U, A, S = "user", "assistant", "system"
CONVERSATIONS = [
    say((U, "What does the baker sell?")),
    say((U, "What does the baker sell?"), (A, "Bread, and 12 cakes.")),
    say((S, "Be short."), (U, "Who sings?"), (A, "The baker."), (U, " Where?\n\nIn town? "), (A, "Yes.\n")),
    say((U, "naïve café 日本 🙂"), (A, "  two spaces first"), (U, "\tand a tab\n"), (A, "a\u00a0b"), (U, "so?")),
    say((U, "<|im_stop|> [INST <|en"), (A, "|> is no token")),
]


def main():
    root = pathlib.Path(__file__).parent
    for name, tokenizer in folders():
        folder = root / name
        tokenizer.save_pretrained(folder, save_jinja_files=name != "ended")
        again = transformers.AutoTokenizer.from_pretrained(folder)
        expected = {"texts": [], "conversations": []}
        for text in ["", "The baker sings.", " two  spaces ", "naïve\n\n12 🙂", "\n"]:
            expected["texts"].append({"text": text, "ids": again.encode(text)})
        for messages in CONVERSATIONS:
            for prompt in (False, True):
                if again.chat_template is None or (name == "instruct" and messages[0]["role"] == "system"):
                    continue
                ids = again.apply_chat_template(messages, add_generation_prompt=prompt)
                case = {"messages": messages, "add_generation_prompt": prompt, "ids": ids}
                case["decoded"] = again.decode(ids, skip_special_tokens=True)
                expected["conversations"].append(case)
        text = json.dumps(expected, ensure_ascii=False)
        (folder / "expected.json").write_text(text + "\n", encoding="utf-8")
        print(name, len(again), len(expected["conversations"]))


if __name__ == "__main__":
    main()
