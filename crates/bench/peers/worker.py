"""Their worker: the same questions as ours, answered with transformers, TRL and PyTorch.

    python worker.py TASK

Questions and answers are lines of JSON; `crates/bench/src/protocol.rs` says what they are. Whatever libraries print goes
to standard error, so that standard output holds answers alone.
"""

import hashlib
import importlib.metadata
import json
import os
import sys
import time

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

TASK = sys.argv[1]

import torch

if TASK in ("sft", "cringe"):
    import language as tasks
elif TASK in ("dpo", "reward"):
    import pairs as tasks
elif TASK in ("greedy", "sample"):
    import completions as tasks
else:
    sys.exit(f"no task `{TASK}`")


def answer(**fields):
    answers.write(json.dumps(fields) + "\n")
    answers.flush()


def status_mib(name):
    with open("/proc/self/status") as lines:
        found = next(line for line in lines if line.startswith(name + ":"))
    return int(found.split()[1]) / 1024


def libtorch():
    """The SHA-256 of the libtorch_cpu in this process."""
    with open("/proc/self/maps") as lines:
        path = next(line.split()[-1] for line in lines if "/libtorch_cpu." in line)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hello():
    # Whatever libtorch makes once, it has made.
    torch.ones(64, 64) @ torch.ones(64, 64)
    names = ["torch", "transformers", "trl", "accelerate"]
    answer(
        **{"is": "hello"},
        threads=torch.get_num_threads(),
        versions={"python": sys.version.split()[0]} | {name: importlib.metadata.version(name) for name in names},
        libtorch=libtorch(),
        rss_mib=status_mib("VmRSS"),
    )


def weights(model):
    """Count, sum and sum of absolute values; tied weights count once."""
    n, total, absolute = 0, 0.0, 0.0
    for parameter in model.parameters():
        n += parameter.numel()
        for piece in parameter.detach().view(-1).split(1 << 20):
            wide = piece.double()
            total += wide.sum().item()
            absolute += wide.abs().sum().item()
    return {"n": n, "sum": total, "abs": absolute}


def data(rows, targets):
    ids = [token for row in rows for token in row]
    checksum = sum(place * token for place, token in enumerate(ids, start=1))
    return {"tokens": len(ids), "targets": targets, "checksum": checksum}


class Turns:
    """Asks between any two steps whether to go on; a step's time is all that passes from one asking to the next."""

    def __init__(self):
        self.left, self.start = 0, None

    def begin(self, made=None):
        """Called before each step, with what the one before made."""
        if self.start is not None:
            self.secs.append(time.perf_counter() - self.start)
            self.tokens.append(made["tokens"])
            for name, value in made["values"].items():
                self.values.setdefault(name, []).append(value)
            self.left -= 1
            if self.left == 0:
                self.answer(made)
        if self.left == 0:
            ask = question()
            if ask["do"] == "quit":
                end()
            self.left, self.secs, self.tokens, self.values = ask["n"], [], [], {}
            self.busy = time.process_time()
        self.start = time.perf_counter()

    def answer(self, made):
        answer(
            **{"is": "ran"},
            secs=self.secs,
            cpu_secs=time.process_time() - self.busy,
            tokens=self.tokens,
            values=self.values,
            ids=made.get("ids", []),
            rss_mib=status_mib("VmRSS"),
            peak_mib=status_mib("VmHWM"),
        )


def question():
    line = sys.stdin.readline()
    return json.loads(line) if line else {"do": "quit"}


def end():
    # Threads that a library left behind keep nobody waiting.
    answers.flush()
    os._exit(0)


def serve():
    hello()
    ask = question()
    if ask["do"] == "quit":
        end()
    with open(ask["data"]) as file:
        material = json.load(file)
    job = tasks.load(ask, material)
    rows, targets = job.first()
    answer(**{"is": "loaded"}, weights=weights(job.model), data=data(rows, targets), compute=job.compute)
    job.run(Turns())


try:
    serve()
except Exception as error:
    answer(**{"is": "failed"}, why=f"{type(error).__name__}: {error}")
    raise
