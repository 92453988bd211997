//! The command line: run, check, replay, status, sysctl, proc, capture, guard, real-server, demo, ipvsadm.
//!
//! Exit statuses: 0 when it is done, 1 when the director (or the demo) failed at its work, 2 when the command line, the
//! configuration or the machine does not allow it to begin. `ipvsadm` has its own, those of ipvsadm: 0, 1, 2 and 255.

#![deny(clippy::print_stdout, clippy::print_stderr)]

#[macro_use]
mod log;

mod capture;
mod check;
pub mod demo;
mod guard;
pub mod ipvsadm;
mod proc;
mod real_server;
mod replay;
mod run;
mod status;
mod sysctl;

use clap::{Parser, Subcommand};
use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use uvs_control::client::Client;
use uvs_control::options::SocketPlace;

/// Linux Virtual Server as a userspace program: layer-4 load balancing over AF_XDP.
#[derive(Debug, Parser)]
#[command(name = "uvs", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a director in the foreground
    Run(run::Args),
    /// Check a configuration file and tell everything that is wrong with it
    Check(check::Args),
    /// Run captures through a director that is not there, and write down what it sends
    Replay(replay::Args),
    /// Show workers, devices, the connection table and why frames were dropped
    Status(status::Args),
    /// Show and set what IPVS has under net.ipv4.vs
    Sysctl(sysctl::Args),
    /// Print what IPVS shows in a file under /proc/net
    Proc(proc::Args),
    /// Show frames as they come in and as they leave, and those that are dropped with the reason
    Capture(capture::Args),
    /// Show or remove the guard that outlives a director
    Guard(guard::Args),
    /// Set this host up as a real server for direct routing or tunnels, and restore it
    RealServer(real_server::Args),
    /// Show the main job in namespaces of this machine: requests through virtual services, by every forwarding method
    Demo(demo::Args),
    /// ipvsadm, as everybody knows it
    #[command(disable_help_flag = true)]
    Ipvsadm {
        /// Its arguments: `uvs ipvsadm -h` lists them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

/// Where the director of a client command is.
#[derive(Clone, Debug, clap::Args)]
struct Socket {
    /// The director's control socket, when it is not the one of this network namespace
    #[arg(long, value_name = "PATH", env = SOCKET_VARIABLE)]
    socket: Option<PathBuf>,
}

/// The variable that names a control socket, for the ipvsadm face too, which has no option for it.
const SOCKET_VARIABLE: &str = "UVS_SOCKET";

impl Socket {
    fn client(&self) -> Client {
        Client::new(self.socket.clone().map_or(SocketPlace::Namespace, SocketPlace::Path))
    }
}

/// A command cannot begin.
const CANNOT_BEGIN: u8 = 2;

/// Runs the command line of this process and returns its exit status.
pub fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    // Either way ipvsadm reads its words itself: a parser in between would take `--` from them.
    match arguments.split_first() {
        Some((name, words)) if Path::new(name).file_name() == Some(OsStr::new("ipvsadm")) => {
            return as_ipvsadm(words);
        }
        Some((_, [command, words @ ..])) if command == "ipvsadm" => return as_ipvsadm(words),
        _ => {}
    }
    match Arguments::parse().command {
        Command::Run(args) => run::run(args),
        Command::Check(args) => check::run(&args),
        Command::Replay(args) => replay::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Sysctl(args) => sysctl::run(&args),
        Command::Proc(args) => proc::run(&args),
        Command::Capture(args) => capture::run(&args),
        Command::Guard(args) => guard::run(&args),
        Command::RealServer(args) => real_server::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Ipvsadm { arguments } => as_ipvsadm(&arguments),
    }
}

/// Prints to standard output. That nobody reads on is no mistake.
fn say(text: &str) {
    let _ = io::stdout().write_all(text.as_bytes());
}

fn as_ipvsadm(arguments: &[OsString]) -> ExitCode {
    let client = Socket { socket: std::env::var_os(SOCKET_VARIABLE).map(PathBuf::from) }.client();
    let mut console = ipvsadm::Console {
        input: &mut io::stdin().lock(),
        output: &mut io::BufWriter::new(io::stdout().lock()),
        errors: &mut io::stderr().lock(),
    };
    ExitCode::from(ipvsadm::run(arguments, &client, &mut console))
}
