//! `uvs real-server`: the real server's side of direct routing and tunnels.

use crate::{CANNOT_BEGIN, say};
use clap::{Subcommand, ValueEnum};
use std::fmt::Write;
use std::net::IpAddr;
use std::process::ExitCode;
use uvs_control::real_server::{self, Encapsulation, Error, Method, Standing, decapsulate};

/// Arguments of `uvs real-server`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, Subcommand)]
enum Command {
    /// Set this host up for a virtual address: the address on lo, no ARP for it, packets out of their tunnel
    Start {
        /// The virtual address
        #[arg(long, value_name = "ADDRESS")]
        vip: IpAddr,
        /// How the director's packets come
        #[arg(long, value_enum)]
        method: MethodWord,
        #[command(flatten)]
        tunnel: Tunnel,
    },
    /// Restore what `start` changed for a virtual address, or for all of them
    Stop {
        /// The virtual address; without it, every one that was started here
        #[arg(long, value_name = "ADDRESS")]
        vip: Option<IpAddr>,
    },
    /// Show what this host is set up for; exits 1 when something of it does not stand
    Status {
        /// The virtual address; without it, every one that was started here
        #[arg(long, value_name = "ADDRESS")]
        vip: Option<IpAddr>,
    },
    /// What `start` runs in the background
    #[command(hide = true)]
    Decapsulate {
        #[command(flatten)]
        tunnel: Tunnel,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum MethodWord {
    /// Direct routing (ipvsadm -g)
    Dr,
    /// A tunnel (ipvsadm -i)
    Tun,
    /// Full NAT (ipvsadm -b), which needs nothing here
    Fullnat,
}

/// The tunnel, in ipvsadm's words.
#[derive(Clone, Copy, Debug, clap::Args)]
struct Tunnel {
    /// What is around the packets, as ipvsadm's option of that name
    #[arg(long, value_enum, value_name = "TYPE")]
    tun_type: Option<TypeWord>,
    /// The UDP port of a gue tunnel, as ipvsadm's option of that name
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    tun_port: Option<u16>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum TypeWord {
    Ipip,
    Gre,
    Gue,
}

impl Tunnel {
    fn encapsulation(self) -> Result<Encapsulation, &'static str> {
        match (self.tun_type.unwrap_or(TypeWord::Ipip), self.tun_port) {
            (TypeWord::Ipip, None) => Ok(Encapsulation::Ipip),
            (TypeWord::Gre, None) => Ok(Encapsulation::Gre),
            (TypeWord::Gue, Some(port)) => Ok(Encapsulation::Gue { port }),
            (TypeWord::Gue, None) => Err("a gue tunnel needs --tun-port, the one given to ipvsadm"),
            (_, Some(_)) => Err("--tun-port is for --tun-type gue only"),
        }
    }

    /// None: nothing has to be done for it.
    fn method(self, word: MethodWord) -> Result<Option<Method>, &'static str> {
        match word {
            MethodWord::Tun => Ok(Some(Method::Tunnel(self.encapsulation()?))),
            MethodWord::Dr | MethodWord::Fullnat if self.tun_type.is_some() || self.tun_port.is_some() => {
                Err("--tun-type and --tun-port are for --method tun only")
            }
            MethodWord::Dr => Ok(Some(Method::Direct)),
            MethodWord::Fullnat => Ok(None),
        }
    }
}

/// Runs `uvs real-server`.
pub(crate) fn run(args: &Args) -> ExitCode {
    let outcome = match &args.command {
        Command::Start { vip, method, tunnel } => match tunnel.method(*method) {
            Ok(Some(method)) => start(*vip, method),
            Ok(None) => {
                say(
                    "full NAT needs nothing here: packets come to this host's own address, from the director's\n",
                );
                Ok(ExitCode::SUCCESS)
            }
            Err(why) => return cannot(why),
        },
        Command::Stop { vip } => stop(*vip),
        Command::Status { vip } => status(*vip),
        Command::Decapsulate { tunnel } => match tunnel.encapsulation() {
            Ok(kind) => return decapsulate(kind),
            Err(why) => return cannot(why),
        },
    };
    outcome.unwrap_or_else(cannot)
}

fn cannot(why: impl std::fmt::Display) -> ExitCode {
    tell!("uvs real-server: {why}");
    ExitCode::from(CANNOT_BEGIN)
}

fn start(vip: IpAddr, method: Method) -> Result<ExitCode, Error> {
    let changes = real_server::start(vip, method)?;
    if changes.is_empty() {
        say("nothing was missing\n");
    }
    lines(&changes);
    Ok(ExitCode::SUCCESS)
}

fn stop(vip: Option<IpAddr>) -> Result<ExitCode, Error> {
    let mut changes = Vec::new();
    match vip {
        Some(vip) => changes.extend(real_server::stop(vip)?),
        None => {
            for standing in real_server::status()? {
                changes.extend(real_server::stop(standing.vip)?);
            }
        }
    }
    if changes.is_empty() {
        say("nothing was to be restored\n");
    }
    lines(&changes);
    Ok(ExitCode::SUCCESS)
}

fn lines(changes: &[String]) {
    changes.iter().for_each(|change| say(&format!("{change}\n")));
}

fn status(vip: Option<IpAddr>) -> Result<ExitCode, Error> {
    let mut standing = real_server::status()?;
    standing.retain(|standing| vip.is_none_or(|vip| standing.vip == vip));
    if standing.is_empty() {
        say("this host is set up for no virtual address\n");
    }
    let mut whole = true;
    for Standing { vip, method, needs, decapsulator } in standing {
        let mut text = format!("{vip} by {method}\n");
        for (need, met) in needs {
            whole &= met;
            let _ = writeln!(text, "  {}{need}", if met { "" } else { "MISSING: " });
        }
        if let Some(pid) = decapsulator {
            let _ = writeln!(text, "  decapsulator: process {pid}");
        }
        say(&text);
    }
    if !whole {
        say("what is missing, `uvs real-server start` puts in place again\n");
    }
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What goes wrong before it is ready is said on standard output, where `start` listens.
fn decapsulate(kind: Encapsulation) -> ExitCode {
    match decapsulate::run(kind) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("{error}\n"));
            ExitCode::FAILURE
        }
    }
}
