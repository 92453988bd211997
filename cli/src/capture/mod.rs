//! `uvs capture`: what tcpdump on a device cannot see of a director's work.

mod line;
mod output;

use crate::{CANNOT_BEGIN, Socket};
use anyhow::{Context, bail};
use line::line;
use output::Output;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::io::{self, BufReader, IsTerminal, Read};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;
use uvs_control::api::CaptureSpec;
use uvs_engine::capture::Filter;
use uvs_engine::link::pcap::{Error, MAX_FRAME, Reader};

/// What `--help` says behind the options.
const DETAILS: &str = "\
Each frame that the director takes is shown as it comes in (`eth0 in`) and, rewritten, as it leaves (`eth1 out`); one that is
dropped once, with the reason (`eth0 drop`). Times are UTC. Ctrl-C ends it and tells how many frames were captured, and how many
were lost because nobody read them in time: the director never waits. While nobody captures it looks at one flag for each batch.

The filter is that of tcpdump, as far as it is made of
  host A, net A/N, port P, portrange P-Q    of the sender or the addressee; `src` or `dst` before it says of which
  tcp, udp, icmp, icmp6, ip, ip6            alone, or before one of the above
  drop                                      frames that were dropped
  and, or, not, ( )                         `and` binds closer than `or`; in a shell, quote parentheses
A condition holds for a frame if it does before or after the rewriting, so that both forms of it are shown.

Examples:
  uvs capture host 203.0.113.200            a client's frames, and what becomes of them
  uvs capture drop                          what is dropped, and why
  uvs capture -i eth1 -c 10 tcp port 80     ten frames by eth1
  uvs capture -w - | tcpdump -r -           tcpdump's eyes; `-w FILE` is for Wireshark and `uvs replay` too

Exit status: 0 when it ended as asked or the director ended, 1 when frames could not be written or the director died, 2 when it
could not begin.";

/// Arguments of `uvs capture`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = DETAILS)]
pub(crate) struct Args {
    /// Show frames of this device of the director only; may be given several times
    #[arg(long = "interface", short = 'i', value_name = "NAME")]
    interfaces: Vec<String>,
    /// Write frames to this file as pcapng instead of showing them; `-` is standard output
    #[arg(long = "write", short = 'w', value_name = "FILE|-")]
    file: Option<PathBuf>,
    /// End after so many frames
    #[arg(long, short = 'c', value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Keep so many bytes of each frame; 0 keeps them all
    #[arg(long = "snapshot-length", short = 's', value_name = "BYTES", default_value_t = 0,
        value_parser = clap::value_parser!(u32).range(0..=i64::from(MAX_FRAME)))]
    snap: u32,
    /// Look up no names, which it never does
    #[arg(short = 'n', action = clap::ArgAction::Count)]
    _numeric: u8,
    #[command(flatten)]
    socket: Socket,
    /// Which frames: `host 203.0.113.200 and not drop`, for example; without it all
    #[arg(value_name = "FILTER")]
    filter: Vec<String>,
}

/// Captures until it is asked to end.
pub(crate) fn run(args: &Args) -> ExitCode {
    let begun = begin(args);
    let outcome = match begun {
        Ok(mut capture) => capture.run(args.count),
        Err(error) => {
            tell!("uvs capture: {error:#}");
            return ExitCode::from(CANNOT_BEGIN);
        }
    };
    outcome.unwrap_or_else(|error| {
        tell!("uvs capture: {error:#}");
        ExitCode::FAILURE
    })
}

/// A capture that runs.
struct Capture {
    reader: Reader<BufReader<UnixStream>>,
    interfaces: Vec<String>,
    output: Output,
    /// Whether it was asked to end.
    asked: Arc<AtomicBool>,
    frames: u64,
    /// When the last one was.
    last: Duration,
}

fn begin(args: &Args) -> anyhow::Result<Capture> {
    let filter = args.filter.join(" ");
    Filter::parse(&filter).context("the filter cannot be read")?;
    if args.file.as_ref().is_some_and(|file| file.as_os_str() == "-") && io::stdout().is_terminal() {
        bail!("standard output is a terminal: pipe it to a program, or name a file after -w");
    }
    let spec = CaptureSpec { interfaces: args.interfaces.clone(), filter, snap: args.snap };
    let (interfaces, stream) = args.socket.client().capture(spec)?;
    let output = match &args.file {
        None => Output::lines(),
        Some(file) => {
            let snap = if args.snap == 0 { MAX_FRAME } else { args.snap };
            Output::file(file, &interfaces, snap)?
        }
    };
    let asked = Arc::default();
    end_on_signals(stream.try_clone()?, Arc::clone(&asked)).context("signals cannot be caught")?;
    let mut devices: Vec<&str> =
        interfaces.iter().filter_map(|name| Some(name.rsplit_once(' ')?.0)).collect();
    devices.dedup();
    tell!("uvs capture: listening on {}; Ctrl-C ends it", devices.join(", "));
    let reader =
        Reader::new(BufReader::with_capacity(1 << 16, stream)).context("the director shows nothing")?;
    Ok(Capture { reader, interfaces, output, asked, frames: 0, last: Duration::ZERO })
}

impl Capture {
    fn run(&mut self, count: Option<u64>) -> anyhow::Result<ExitCode> {
        let ended = self.pass_on(count);
        let lost = self.reader.interfaces().iter().map(|interface| interface.lost);
        let written = ended.and_then(|code| self.output.finish(self.last, lost.clone()).map(|()| code));
        tell!("{} frames captured, {} lost", self.frames, lost.flatten().sum::<u64>());
        match written {
            Ok(code) => Ok(code),
            // Whoever read it has seen enough.
            Err(error) if is_closed(&error) => Ok(ExitCode::SUCCESS),
            Err(error) => Err(error),
        }
    }

    /// Takes frames until there are enough or no more.
    fn pass_on(&mut self, count: Option<u64>) -> anyhow::Result<ExitCode> {
        while count.is_none_or(|count| self.frames < count) {
            if self.reader.get_ref().buffer().is_empty() {
                self.output.flush()?;
            }
            match self.reader.next() {
                Some(Ok(record)) => {
                    let interface = self.interfaces.get(record.interface).map_or("?", String::as_str);
                    self.output.frame(&record, || line(&record, interface))?;
                    self.frames += 1;
                    self.last = record.time;
                }
                // What was lost is told at the end.
                None if self.reader.interfaces().iter().any(|interface| interface.lost.is_none()) => {
                    if self.asked.load(Relaxed) {
                        break;
                    }
                    bail!("the director died");
                }
                None => {
                    if !self.asked.load(Relaxed) {
                        tell!("uvs capture: the director ended");
                    }
                    break;
                }
                // It did not answer the wish to end in time.
                Some(Err(Error::CutShort(_))) if self.asked.load(Relaxed) => break,
                Some(Err(Error::CutShort(_) | Error::Io(_))) => bail!("the director died"),
                Some(Err(error)) => bail!("what the director sends {error}"),
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn is_closed(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Asks the director for the last frames when this process is asked to end. When these do not come either, or at the second
/// time, it ends without.
fn end_on_signals(stream: UnixStream, asked: Arc<AtomicBool>) -> io::Result<()> {
    const PATIENCE: Duration = Duration::from_secs(2);
    const ONE_WISH: Duration = Duration::from_millis(100);
    let (mut read, write) = UnixStream::pair()?;
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::low_level::pipe::register(signal, write.try_clone()?)?;
    }
    thread::Builder::new().name("uvs-signals".into()).spawn(move || {
        let mut signal = [0];
        if !matches!(read.read(&mut signal), Ok(1)) {
            return;
        }
        asked.store(true, Relaxed);
        let _gone_already = stream.shutdown(Shutdown::Write);
        // `timeout` signals a process and then its group: that is one wish.
        thread::sleep(ONE_WISH);
        let _none_left = read.set_nonblocking(true).and_then(|()| read.read(&mut [0; 64]));
        let _it_waits = read.set_nonblocking(false);
        let _no_limit = read.set_read_timeout(Some(PATIENCE));
        if matches!(read.read(&mut signal), Ok(1)) {
            std::process::exit(128 + SIGINT);
        }
        let _gone_already = stream.shutdown(Shutdown::Both);
        let _no_limit = read.set_read_timeout(None);
        if matches!(read.read(&mut signal), Ok(1)) {
            std::process::exit(128 + SIGINT);
        }
    })?;
    Ok(())
}
