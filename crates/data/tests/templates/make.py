"""Renders chat templates with transformers' own renderer, for the tests of this crate.

    python make.py own expected          the committed cases: templates of our own, in the manner of model families
    python make.py FOLDER FOLDER         the same for any folder of `*.jinja` files

Needs transformers==4.57.6 and jinja2==3.1.6. One JSON file per template comes out: the template, its variables, and of
every conversation the text, or that rendering it fails. Templates that ask for the date get 26 July 2024.
"""

import datetime
import json
import pathlib
import sys

import jinja2
import transformers
from transformers.utils import chat_template_utils

assert transformers.__version__ == "4.57.6", transformers.__version__
assert jinja2.__version__ == "3.1.6", jinja2.__version__


class FixedDay(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2024, 7, 26)


chat_template_utils.datetime = FixedDay

VARIABLES = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
}

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a place, «now»",
            "parameters": {
                "type": "object",
                "properties": {
                    "place": {"type": "string", "description": "Town, \"quoted\""},
                    "days": {"type": "integer", "enum": [1, 2, 3]},
                },
                "required": ["place"],
            },
            "return": {"type": "string"},
        },
    },
    {
        "type": "function",
        "function": {
            "name": "now",
            "description": "The time",
            "parameters": {"type": "object", "properties": {}},
        },
    },
]

DOCUMENTS = [
    {"title": "Bread", "text": "Flour, water, salt."},
    {"title": "", "text": "No title.\nTwo lines."},
]


def say(*turns):
    return [{"role": role, "content": content} for role, content in turns]


U, A, S = "user", "assistant", "system"
TALK = say((U, "Hello there"), (A, "Hi! What can I do?"), (U, "Sing a song."), (A, "La la la."))
CONVERSATIONS = {
    "one question": say((U, "What is bread?")),
    "one answer": say((U, "What is bread?"), (A, "Baked dough.")),
    "two exchanges": TALK,
    "three questions": TALK + say((U, "Another one?")),
    "system": say((S, "You are short."), (U, "Who are you?"), (A, "Me."), (U, "And me?")),
    "spaces and lines": say((U, "  two\n\nlines\t \n"), (A, "\n an answer \n\n"), (U, " \u00a0next\u2028line ")),
    "spaced system": say((S, "\n  spaced out\t\n"), (U, "x"), (A, "y")),
    "unicode": say((S, "Sei höflich 🙂"), (U, "«naïve» 日本語 👩‍👩‍👧 e\u0301"), (A, "Ñandú — “quoted” \u200bzero")),
    "thoughts": say((U, "2+2?"), (A, "<think>\nIt is four.\n</think>\n\nFour."), (U, "3+3?"), (A, "<think>six</think>Six.")),
    "special look-alikes": say((U, "<|im_end|> </s> [INST] {{ bos_token }} {% if %}"), (A, "<|eot_id|>")),
    "empty answer": say((U, "Say nothing."), (A, ""), (U, "Thanks.")),
    "quotes": say((U, "it's \"so\" \\ 'far'"), (A, "{\"a\": 1}")),
    "two systems": say((S, "one"), (S, "two"), (U, "q")),
    "twice the user": say((U, "a"), (U, "b")),
    "answer first": say((A, "Hello!"), (U, "Hi.")),
    "odd role": say((U, "a"), ("judge", "b"), (U, "c")),
    "nothing": [],
}
CALL = say((U, "Weather in Bern?")) + [
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"type": "function", "id": "call00001", "function": {"name": "weather", "arguments": {"place": "Bern", "days": 2}}}
        ],
    },
    {"role": "tool", "tool_call_id": "call00001", "name": "weather", "content": "sun"},
    {"role": "assistant", "content": "It is sunny."},
]


def cases():
    for name, messages in CONVERSATIONS.items():
        for prompt in (False, True):
            yield f"{name}{', to answer' if prompt else ''}", messages, prompt, {}
    for name in ("one question", "system", "two exchanges"):
        yield f"{name}, tools", CONVERSATIONS[name], True, {"tools": TOOLS}
        yield f"{name}, documents", CONVERSATIONS[name], True, {"documents": DOCUMENTS}
    yield "a call", CALL, False, {"tools": TOOLS}
    yield "a call, to answer", CALL[:3], True, {"tools": TOOLS}
    yield "no thinking", CONVERSATIONS["three questions"], True, {"enable_thinking": False}
    yield "thinking", CONVERSATIONS["three questions"], True, {"enable_thinking": True}
    yield "another day", CONVERSATIONS["system"], True, {"date_string": "1 May 1900"}


def rendered(template, variables):
    for name, messages, prompt, extra in cases():
        case = {"name": name, "messages": messages, "add_generation_prompt": prompt}
        if extra:
            case["extra"] = extra
        arguments = {"tools": None, "documents": None, **variables, **extra}
        tools, documents = arguments.pop("tools"), arguments.pop("documents")
        try:
            text, _ = chat_template_utils.render_jinja_template(
                conversations=[messages],
                tools=tools,
                documents=documents,
                chat_template=template,
                add_generation_prompt=prompt,
                **arguments,
            )
            case["text"] = text[0]
        except jinja2.exceptions.TemplateError as error:
            undefined = isinstance(error, jinja2.exceptions.UndefinedError)
            case["complaint" if type(error) is jinja2.exceptions.TemplateError else "error"] = str(error) if not undefined else "undefined"
        except (TypeError, ValueError, AttributeError, KeyError, IndexError) as error:
            case["error"] = type(error).__name__
        yield case


def main(source, target):
    source, target = pathlib.Path(source), pathlib.Path(target)
    target.mkdir(parents=True, exist_ok=True)
    count = 0
    for path in sorted(source.glob("*.jinja")):
        template = path.read_text(encoding="utf-8")
        own = path.with_suffix(".json")
        variables = json.loads(own.read_text(encoding="utf-8")) if own.exists() else VARIABLES
        found = {"template": template, "variables": variables, "cases": list(rendered(template, variables))}
        head = json.dumps({"template": template, "variables": variables}, ensure_ascii=False)[:-1]
        lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in found["cases"])
        text = f'{head}, "cases": [\n{lines}\n]}}\n'
        (target / f"{path.stem}.json").write_text(text, encoding="utf-8")
        count += len(found["cases"])
        texts = sum("text" in case for case in found["cases"])
        print(f"{path.stem}: {texts} texts of {len(found['cases'])} conversations")
    print(f"{count} conversations")


if __name__ == "__main__":
    main(*sys.argv[1:])
