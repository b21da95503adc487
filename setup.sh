#!/usr/bin/env bash
# Installs what is missing, into this folder alone, then hands its arguments to `just`:
#
#   ./setup.sh                                  only set up
#   ./setup.sh run experiments/cringe_safety.yaml
#   ./setup.sh test
#
# Needs: a Rust toolchain, a C++ compiler, git, python3 with pip. Installs: libtorch into .libtorch (unless
# LIBTORCH names one of your own) and, if it is not on the path, just into .tools. Run again it does nothing twice.
set -euo pipefail
cd "$(dirname "$0")"

torch_version=2.11.0
say() { printf 'setup: %s\n' "$*" >&2; }
fail() { printf 'setup: error: %s\n' "$*" >&2; exit 1; }

# The version of a libtorch folder, as build/libtorch.rs reads it.
found_version() {
    if [ -f "$1/build-version" ]; then
        sed 's/+.*//' "$1/build-version"
    elif [ -f "$1/version.py" ]; then
        sed -n "s/^__version__ = '\([^'+]*\).*/\1/p" "$1/version.py"
    fi
}

# pip_into FOLDER WHAT PACKAGE...: installs into FOLDER, whole or not at all.
pip_into() {
    local folder=$1 what=$2
    shift 2
    say "installing $what into $folder"
    rm -rf "$folder.partial"
    if ! python3 -m pip install --quiet --disable-pip-version-check --root-user-action=ignore \
        --no-deps --target "$folder.partial" "$@" >"$folder.log" 2>&1; then
        fail "could not install $what: $(grep -v '^WARNING' "$folder.log" | tail -n 1); is the network reachable? (all of it: $folder.log)"
    fi
    rm -rf "$folder" "$folder.log"
    mv "$folder.partial" "$folder"
}

command -v cargo >/dev/null || fail "no cargo found; install a Rust toolchain (1.89 or newer)"
command -v git >/dev/null || fail "no git found; install git"
command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null || fail "no C++ compiler found; install g++ or clang"

if [ -n "${LIBTORCH:-}" ]; then
    [ -d "$LIBTORCH/lib" ] || fail "LIBTORCH is set to '$LIBTORCH', which has no folder lib; libtorch $torch_version is wanted"
    found=$(found_version "$LIBTORCH")
    [ "$found" = "$torch_version" ] || fail "libtorch $torch_version is wanted, ${found:-an unknown version} was found at LIBTORCH='$LIBTORCH'"
    say "using libtorch $found at $LIBTORCH"
elif [ "$(found_version .libtorch/torch)" = "$torch_version" ]; then
    say "libtorch $torch_version is here"
else
    python3 -m pip --version >/dev/null 2>&1 || fail "no python3 with pip found; install it, or set LIBTORCH to a libtorch $torch_version"
    packages=("torch==$torch_version")
    # The Linux build links to these two libraries even where there is no GPU.
    [ "$(uname -s)-$(uname -m)" != Linux-x86_64 ] || packages+=('nvidia-cuda-runtime==13.0.*' 'nvidia-cuda-cupti==13.0.*')
    pip_into .libtorch "libtorch $torch_version (1.3 GB)" "${packages[@]}"
    [ "$(found_version .libtorch/torch)" = "$torch_version" ] || fail "the installed libtorch is not $torch_version; remove .libtorch and try again"
fi

if command -v just >/dev/null; then
    just=just
else
    if [ ! -x .tools/bin/just ]; then
        python3 -m pip --version >/dev/null 2>&1 || fail "no just and no python3 with pip found; install one of them"
        pip_into .tools just rust-just==1.59.0
    fi
    just=$PWD/.tools/bin/just
    say "just is at $just"
fi

cargo fetch --quiet --locked 2>.fetch.log || fail "could not fetch the crates: $(tail -n 1 .fetch.log); is the network reachable?"
rm -f .fetch.log
[ $# -gt 0 ] || { say "ready; try: $just run experiments/cringe_safety.yaml"; exit 0; }
exec "$just" "$@"
