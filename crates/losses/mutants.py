#!/usr/bin/env python3
"""Exchanges tensor calls in the source of the losses, one at a time, and says which test notices (docs/mutants.md).

    python3 crates/losses/mutants.py --every 3 --from 0 > found.tsv

Run it in a copy of the tree: it writes to crates/losses/src, and puts back what it changed. One line per mutant: the test
that noticed, `does not compile` or `NOT NOTICED`; the place; the change.
"""
import argparse
import re
import subprocess
from pathlib import Path

BOTH = [("add", "sub"), ("mul", "div"), ("add_scalar", "sub_scalar"), ("mul_scalar", "div_scalar"), ("gt", "ge"),
        ("lt", "le"), ("gt_tensor", "ge_tensor"), ("lt_tensor", "le_tensor"), ("eq", "ne"), ("clamp_max", "clamp_min"),
        ("maximum", "minimum"), ("logical_and", "logical_or"), ("exp", "expm1")]
ONE = [("log1p", "log"), ("log_sigmoid", "sigmoid")]
LEFT_OUT = ["neg", "detach", "logical_not", "square", "abs"]
CHANGES = [(rf"\.f_{a}\(", f".f_{b}(") for a, b in BOTH + [(b, a) for a, b in BOTH] + ONE]
CHANGES += [(rf"\.f_{call}\(\)\?", "") for call in LEFT_OUT]
CHANGES += [(rf"\.f_clamp_{end}\([^()]*\)\?", "") for end in ("max", "min")]

CRATE = Path(__file__).resolve().parent


def places():
    """Every place outside of tests and comments: file, start, end, the call and what it becomes."""
    found = []
    for path in sorted((CRATE / "src").rglob("*.rs")):
        if path.name == "tests.rs":
            continue
        code = path.read_text().split("#[cfg(test)]")[0]
        for call, other in CHANGES:
            for at in re.finditer(call, code):
                line = code[code.rfind("\n", 0, at.start()) + 1:at.start()]
                if not line.lstrip().startswith("//"):
                    found.append((path, at.start(), at.end(), at.group(), other))
    return sorted(found)


def run(*which):
    """Whether these tests pass, and what cargo says."""
    command = ["cargo", "test", "--quiet", "-p", "unsay-losses", *which]
    try:
        done = subprocess.run(command, cwd=CRATE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=600)
    except subprocess.TimeoutExpired:
        return False, "timeout"
    return done.returncode == 0, done.stdout.decode(errors="replace")


def verdict():
    """The first test that notices what is in the source now."""
    passed, text = run("--lib")
    if not passed:
        return "does not compile" if "could not compile" in text else "lib"
    for test in sorted(path.stem for path in (CRATE / "tests").iterdir() if path.name != "plain"):
        if not run("--test", test)[0]:
            return test
    return "NOT NOTICED"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="take every so manyth place")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first place to take")
    parser.add_argument("--most", type=int, help="stop after so many")
    given = parser.parse_args()
    for path, start, end, call, other in places()[given.first::given.every][:given.most]:
        code = path.read_text()
        try:
            path.write_text(code[:start] + other + code[end:])
            found = verdict()
        finally:
            path.write_text(code)
        line = code.count("\n", 0, start) + 1
        print(f"{found}\t{path.relative_to(CRATE)}:{line}\t{call} -> {other or '(nothing)'}", flush=True)


if __name__ == "__main__":
    main()
