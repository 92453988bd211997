//! `uvs run`: a director in the foreground.

use crate::{CANNOT_BEGIN, log};
use clap::ValueEnum;
use std::path::PathBuf;
use std::process::ExitCode;
use uvs_control::config;
use uvs_control::director::{self, RunError, devices};
use uvs_control::options::{self, Io, Overrides, RunOptions, XdpMode};

/// Arguments of `uvs run`. What is said here wins over the configuration file.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// The configuration file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A device to take frames from, or `all`; may be given several times
    #[arg(long = "interface", short = 'i', value_name = "NAME|all")]
    interfaces: Vec<String>,
    /// How frames are taken from the devices
    #[arg(long, value_enum)]
    io: Option<IoWord>,
    /// Where the steering program runs
    #[arg(long, value_enum)]
    xdp_mode: Option<ModeWord>,
    /// How many worker threads there are
    #[arg(long, value_name = "N", conflicts_with = "cores")]
    workers: Option<usize>,
    /// The processors that get a worker thread each, such as 0-3,8
    #[arg(long, value_name = "LIST", value_parser = cores)]
    cores: Option<Cores>,
    /// Let the kernel place the worker threads
    #[arg(long)]
    unpinned: bool,
    /// Make the control socket at this path instead of this network namespace's own
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Put the virtual addresses on the devices, announce them, and take them off at the end
    #[arg(long)]
    assign_vips: bool,
}

/// Processors, as clap keeps one value of a list.
#[derive(Clone, Debug)]
struct Cores(Vec<usize>);

fn cores(list: &str) -> Result<Cores, String> {
    options::parse_cores(list).map(Cores)
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum IoWord {
    Auto,
    Xdp,
    Raw,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ModeWord {
    Auto,
    Native,
    Generic,
}

/// Runs a director until it is asked to end.
pub(crate) fn run(args: Args) -> ExitCode {
    log::init();
    let configured = match args.config.as_deref().map(config::load) {
        None => RunOptions::default(),
        Some(Ok(options)) => options,
        Some(Err(faults)) => {
            log::say(&faults.to_string());
            return ExitCode::from(CANNOT_BEGIN);
        }
    };
    let options = configured.overridden(overrides(args));
    if options.interfaces.is_empty() {
        list_devices();
        return ExitCode::from(CANNOT_BEGIN);
    }
    match director::run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::say(&format!("uvs: {error}\n"));
            match error {
                RunError::Start(_) => ExitCode::from(CANNOT_BEGIN),
                RunError::WorkerDied | RunError::DevicesGone => ExitCode::FAILURE,
            }
        }
    }
}

fn overrides(args: Args) -> Overrides {
    Overrides {
        interfaces: args.interfaces,
        io: args.io.map(|word| match word {
            IoWord::Auto => Io::Auto,
            IoWord::Xdp => Io::Xdp,
            IoWord::Raw => Io::Raw,
        }),
        xdp_mode: args.xdp_mode.map(|word| match word {
            ModeWord::Auto => XdpMode::Auto,
            ModeWord::Native => XdpMode::Native,
            ModeWord::Generic => XdpMode::Generic,
        }),
        workers: args.workers,
        cores: args.cores.map(|Cores(cores)| cores),
        unpinned: args.unpinned,
        socket: args.socket,
        assign_vips: args.assign_vips,
    }
}

/// Tells which devices there are to choose from.
fn list_devices() {
    tell!("uvs: no device to take frames from: name one with --interface, or several, or all");
    match devices::usable() {
        Ok(devices) if devices.is_empty() => {
            tell!("this network namespace has no Ethernet device that is up");
        }
        Ok(devices) => {
            tell!("usable devices:");
            for device in devices {
                let queues = if device.queues == 1 { "queue" } else { "queues" };
                tell!("  {:<15} MTU {:<6} {} {queues}", device.name, device.mtu, device.queues);
            }
        }
        Err(error) => tell!("{error}"),
    }
}
