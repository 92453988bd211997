//! `uvs guard`: what stands behind a director that died, and how to take it away.

use crate::{CANNOT_BEGIN, Socket, say};
use clap::Subcommand;
use std::process::ExitCode;
use uvs_control::api::{Request, Response};
use uvs_control::client::ClientError;
use uvs_control::director::reserve;
use uvs_engine::steer::diversion;
use uvs_engine::steer::guard::{self, Standing};

/// Arguments of `uvs guard`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    socket: Socket,
}

#[derive(Clone, Debug, Subcommand)]
enum Command {
    /// Show the guards of this network namespace and how long they still drop
    Status,
    /// Remove them: the kernel answers for the services at once
    Off,
}

/// Runs `uvs guard`.
pub(crate) fn run(args: &Args) -> ExitCode {
    let outcome = match args.command {
        Command::Status => status(),
        Command::Off => off(&args.socket),
    };
    outcome.unwrap_or_else(|error| {
        tell!("uvs guard: {error:#}");
        ExitCode::from(CANNOT_BEGIN)
    })
}

fn status() -> anyhow::Result<ExitCode> {
    let standing = guard::status()?;
    if standing.is_empty() {
        say("no guard stands in this network namespace\n");
    }
    for Standing { device, remaining, .. } in standing {
        match remaining {
            Some(left) if left.is_zero() => say(&format!("{device}: expired, lets everything pass\n")),
            Some(left) => {
                say(&format!("{device}: drops for {} s unless a director renews it\n", left.as_secs()));
            }
            None => say(&format!("{device}: stands; only root may see for how long\n")),
        }
    }
    for device in diversion::devices()? {
        say(&format!("{device}: this host's own packets of balanced connections go to a director\n"));
    }
    Ok(ExitCode::SUCCESS)
}

/// A director that runs would renew its guard, so it is told; what others left behind is removed without it.
fn off(socket: &Socket) -> anyhow::Result<ExitCode> {
    let client = socket.client();
    match client.ask(&Request::GuardOff) {
        Ok(Response::Done) => say("the running director keeps no guard until it starts again\n"),
        Ok(other) => return Err(client.unexpected(other).into()),
        Err(ClientError::NoDirector(_)) => {
            if reserve::restore()? {
                say("ports that were reserved for full NAT are free again\n");
            }
            for device in diversion::remove_all()? {
                say(&format!("{device}: this host's own packets go by it again\n"));
            }
        }
        Err(error) => return Err(error.into()),
    }
    let removed = guard::remove_all()?;
    for Standing { device, .. } in &removed {
        say(&format!("{device}: guard removed\n"));
    }
    if removed.is_empty() {
        say("no guard stands in this network namespace\n");
    }
    Ok(ExitCode::SUCCESS)
}
