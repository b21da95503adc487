//! The `unsay` binary: reads its arguments and hands over.

use std::process::ExitCode;

fn main() -> ExitCode {
    unsay_experiment::cli::main()
}
