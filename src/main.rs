//! The `uvs` binary. It also answers to the name `ipvsadm`.

use std::process::ExitCode;

fn main() -> ExitCode {
    uvs_cli::main()
}
