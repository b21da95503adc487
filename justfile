# The commands of this project. `just` alone lists them.

set positional-arguments

_default:
    @just --list --unsorted

# Run an experiment to its tables and figures: just run experiments/cringe_safety.yaml --profile real
run manifest *options:
    cargo run --locked -p unsay-experiment -- run "$@"

# Anything the unsay binary does: just unsay plan experiments/cringe_safety.yaml
unsay *arguments:
    @cargo run --quiet --locked -p unsay-experiment -- "$@"

# Remake the figures and the page of a results folder from its tables alone
plots results="results/cringe_safety/testbed":
    cargo run --quiet --locked -p unsay-experiment -- report "$1"

# All tests, doctests included; options go to cargo (for one crate: cargo test -p unsay-losses)
test *options:
    cargo test --locked --workspace "$@"

# Benchmarks (docs/benchmarks-own.md); `just bench --bench hot_paths` runs one list of every crate, `-p unsay-data` one crate
bench *options:
    cargo bench --locked --profile dev --workspace "$@"

# Fail when a hot path got slower than the committed baseline, or than a commit: just bench-gate --against main
bench-gate *options:
    cargo build --quiet --locked --workspace --bins
    "${CARGO_TARGET_DIR:-target}/debug/unsay-gate" "$@"

# Side by side with transformers, TRL and PyTorch, in a private Python environment that is made first: just bench-peers --only 'sft_*'
bench-peers *options:
    #!/usr/bin/env bash
    set -euo pipefail
    cargo build --quiet --locked -p unsay-bench -p unsay-experiment
    case " $* " in
        *" --list "* | *" --help "* | *" --alone ours "*) python=python3 ;;
        *) python=$(crates/bench/peers/environment.sh) ;;
    esac
    exec "${CARGO_TARGET_DIR:-target}/debug/unsay-bench" peers --python "$python" "$@"

# Format, lints, documentation
lint:
    cargo fmt --all --check
    cargo clippy --locked --workspace --all-targets -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --quiet

# Check every manifest in experiments/
check:
    for m in experiments/*.yaml; do cargo run --quiet --locked -p unsay-experiment -- check "$m" || exit 1; done

# What continuous integration runs
ci:
    .ci/run
