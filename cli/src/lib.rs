//! The command line: run, check, status, guard, demo, ipvsadm.

use std::process::ExitCode;

/// Runs the command line of this process and returns its exit status.
pub fn main() -> ExitCode {
    ExitCode::from(2)
}
