//! `uvs check`: everything that is wrong with a configuration file.

use crate::{CANNOT_BEGIN, log, say};
use std::path::PathBuf;
use std::process::ExitCode;
use uvs_control::config;

/// Arguments of `uvs check`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// The configuration file
    file: PathBuf,
}

/// Prints every fault, one a line, and tells by the exit status whether there was one.
pub(crate) fn run(args: &Args) -> ExitCode {
    match config::load(&args.file) {
        Ok(options) => {
            let servers: usize = options.services.iter().map(|(_, servers)| servers.len()).sum();
            let (file, services) = (args.file.display(), options.services.len());
            say(&format!("{file}: {services} services, {servers} real servers, nothing wrong\n"));
            ExitCode::SUCCESS
        }
        Err(faults) => {
            log::say(&faults.to_string());
            ExitCode::from(CANNOT_BEGIN)
        }
    }
}
