#!/usr/bin/env bash
# Makes the private Python environment of the peers, once, and prints its python. It lies in the user's cache folder under the
# sum of its requirements, so that another list of them is another environment. Needs python3 (3.11 or newer) with venv and pip,
# and 7 GB: the torch of PyPI is the libtorch that ./setup.sh installs, and wants its CUDA libraries beside it even to
# compute on a processor alone.
set -euo pipefail
cd "$(dirname "$0")"

say() { printf 'peers: %s\n' "$*" >&2; }
fail() { printf 'peers: error: %s\n' "$*" >&2; exit 1; }

python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || fail "no python3 of version 3.11 or newer found"
sum=$(python3 -c 'import hashlib; print(hashlib.sha256(open("requirements.txt", "rb").read()).hexdigest()[:12])')
version=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])')
cache=${XDG_CACHE_HOME:-${HOME:?neither XDG_CACHE_HOME nor HOME is set}/.cache}/unsay
folder=$cache/peers-$version-$sum
python=$folder/bin/python

if [ ! -f "$folder/finished" ]; then
    mkdir -p "$cache"
    free=$(df -Pk "$cache" | awk 'NR == 2 { print int($4 / 1048576) }')
    [ "$free" -ge 7 ] || fail "7 GB are needed in $cache, $free are free"
    say "making the Python environment in $folder (about 5 GB, once)"
    rm -rf "$folder"
    python3 -m venv "$folder" || fail "python3 has no venv; install it"
    # The list is complete, and leaves out what torch asks for and nothing here uses.
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.txt >"$folder/pip.log" 2>&1 ||
        fail "could not install: $(tail -n 1 "$folder/pip.log"); is the network reachable? (all of it: $folder/pip.log)"
    "$python" -c 'import torch, transformers, trl, datasets' >"$folder/import.log" 2>&1 ||
        fail "what was installed cannot be imported: $(tail -n 1 "$folder/import.log")"
    : >"$folder/finished"
fi
printf '%s\n' "$python"
