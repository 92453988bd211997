//! `uvs replay`: captures through a director that is not there.

use crate::{CANNOT_BEGIN, log, say};
use anyhow::{Context, bail};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use uvs_control::config;
use uvs_control::replay::{Arrival, Learner, MAX_DEVICES, Merged, Network, Replay};
use uvs_engine::link::pcap::{self, Direction};
use uvs_engine::packet::ethernet::Mac;
use uvs_engine::packet::summary::describe;
use uvs_engine::worker::Outcome;
use uvs_engine::{PortId, Reason, Verdict};

/// Arguments of `uvs replay`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// The configuration file, of which services, limits and timeouts count
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// A capture (pcap or pcapng) of one device of the director, or of several; may be given several times
    #[arg(long = "in", value_name = "FILE", required = true)]
    inputs: Vec<PathBuf>,
    /// Where what the director sends is written: pcapng when the name ends so, else pcap; `-` is standard output, and words then go
    /// to standard error
    #[arg(long = "out", value_name = "FILE|-")]
    output: Option<PathBuf>,
    /// Tell of each frame what became of it, and why
    #[arg(long)]
    explain: bool,
    /// A link-layer address of the director, where the captures do not show it; may be given several times
    #[arg(long = "mac", value_name = "ADDRESS", value_parser = link_layer_address)]
    macs: Vec<Own>,
    /// The MTU of the director's devices in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 1500, value_parser = clap::value_parser!(u32).range(68..=65535))]
    mtu: u32,
}

/// A link-layer address, as clap keeps one value.
#[derive(Clone, Copy, Debug)]
struct Own(Mac);

fn link_layer_address(text: &str) -> Result<Own, String> {
    let wrong = || format!("`{text}` is not a link-layer address such as 02:00:00:00:00:01");
    let bytes = text.split(':').map(|byte| match byte.len() {
        1 | 2 => u8::from_str_radix(byte, 16).map_err(|_| wrong()),
        _ => Err(wrong()),
    });
    let bytes = bytes.collect::<Result<Vec<_>, _>>()?;
    bytes.try_into().map(Own).map_err(|_| wrong())
}

/// Replays the captures. Exit status 1 when one of them ended in the middle of a record.
pub(crate) fn run(args: &Args) -> ExitCode {
    let options = match config::load(&args.config) {
        Ok(options) => options,
        Err(faults) => {
            log::say(&faults.to_string());
            return ExitCode::from(CANNOT_BEGIN);
        }
    };
    match replay(args, &options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            tell!("uvs replay: {error:#}");
            ExitCode::from(CANNOT_BEGIN)
        }
    }
}

fn replay(args: &Args, options: &uvs_control::options::RunOptions) -> anyhow::Result<bool> {
    let mut learner = Learner::new(&options.services, args.macs.iter().map(|own| own.0).collect());
    let mut captures = Merged::open(&args.inputs)?;
    while let Some(arrival) = captures.next() {
        let Arrival { file, record } = arrival?;
        let source = (file, record.interface);
        if !learner.look(source, || captures.name(source.0, source.1), &record.bytes) {
            bail!("the captures have more than {MAX_DEVICES} interfaces: replay fewer at a time");
        }
    }
    let network = learner.finish();
    let mut replay = Replay::new(options, &network, args.mtu)?;
    let mut output =
        args.output.as_deref().map(|path| Output::create(path, &args.inputs, &network)).transpose()?;
    let say =
        if output.as_ref().is_some_and(|output| output.path == Path::new("-")) { log::say } else { say };
    let mut tally = Tally { say, frames: 0, sent: 0, returned: 0, dropped: BTreeMap::new() };
    let mut captures = Merged::open(&args.inputs)?;
    let (mut start, mut now) = (None, Duration::ZERO);
    for arrival in captures.by_ref() {
        let Arrival { file, record } = arrival?;
        let Some(port) = network.port((file, record.interface)) else { continue };
        now = now.max(record.time);
        let since = now.saturating_sub(*start.get_or_insert(record.time));
        let waited = replay.wait_until(now);
        tally.finish(args.explain, &network, since, &waited);
        tally.frames += 1;
        let before = args.explain.then(|| describe(&record.bytes));
        let outcome = replay.receive(port, record.bytes, record.wire_len);
        if let Some(before) = before {
            let words = verdicts(&outcome, &network);
            let name = &network.devices[usize::from(port.0)].name;
            say(&format!("{} {} {name}: {before}: {words}\n", tally.frames, seconds(since)));
        }
        tally.finish(args.explain, &network, since, &outcome);
        if let Some(output) = &mut output {
            let sent = waited.sent.iter().chain(&outcome.sent);
            for (port, bytes) in sent {
                output.write(*port, now, tally.frames, bytes)?;
            }
        }
    }
    // Fragments and frames that wait for a next hop are given up after a while.
    let since = now.saturating_sub(start.unwrap_or_default());
    let waited = replay.wait_until(now + Duration::from_secs(60));
    tally.finish(args.explain, &network, since, &waited);
    if let Some(output) = output {
        output.finish()?;
    }
    say(&tally.summary(&network));
    let cut_short: Vec<String> = captures.cut_short().collect();
    cut_short.iter().for_each(|what| tell!("uvs replay: {what}"));
    Ok(cut_short.is_empty())
}

fn seconds(time: Duration) -> String {
    format!("{}.{:06}", time.as_secs(), time.subsec_micros())
}

/// The verdicts about one frame, and about what it was cut into.
fn verdicts(outcome: &Outcome, network: &Network) -> String {
    let mut words: Vec<String> = Vec::new();
    for verdict in &outcome.verdicts {
        let word = in_words(*verdict, network);
        if words.last() != Some(&word) {
            words.push(word);
        }
    }
    words.join("; ")
}

fn in_words(verdict: Verdict, network: &Network) -> String {
    let name = |port: PortId| {
        network.devices.get(usize::from(port.0)).map_or("a device not captured", |device| &device.name)
    };
    match verdict {
        Verdict::Transmit(port) => format!("sent by {}", name(port)),
        Verdict::Fragment(port, limit) => {
            format!("sent by {} in fragments of {limit} bytes at most", name(port))
        }
        Verdict::Segment(limit) => format!("cut into segments of {limit} bytes at most"),
        Verdict::ToKernel => "left to the host".into(),
        Verdict::Hold(neighbour) => format!("held until {} has a link-layer address", neighbour.address),
        Verdict::Await => "held until the first fragment comes".into(),
        Verdict::Drop(reason) => dropped(reason),
    }
}

fn dropped(reason: Reason) -> String {
    format!("dropped, {}: {}", reason.name(), reason.explanation())
}

/// What is said when all is done.
#[derive(Debug)]
struct Tally {
    say: fn(&str),
    frames: u64,
    sent: u64,
    returned: u64,
    dropped: BTreeMap<&'static str, u64>,
}

impl Tally {
    /// Counts what came of frames, and tells what was not told with the frame itself.
    fn finish(&mut self, explain: bool, network: &Network, since: Duration, outcome: &Outcome) {
        self.sent += outcome.sent.len() as u64;
        self.returned += outcome.returned.len() as u64;
        let judged = outcome.verdicts.iter().chain(&outcome.of_held);
        let reasons = judged.filter_map(|verdict| match verdict {
            Verdict::Drop(reason) => Some(reason),
            _ => None,
        });
        for reason in reasons.chain(&outcome.dropped) {
            *self.dropped.entry(reason.name()).or_default() += 1;
        }
        if !explain {
            return;
        }
        let mut text = String::new();
        for verdict in &outcome.of_held {
            if !matches!(verdict, Verdict::Hold(_) | Verdict::Await) {
                let _ = writeln!(
                    text,
                    "  {} a frame held before: {}",
                    seconds(since),
                    in_words(*verdict, network)
                );
            }
        }
        for (port, bytes) in &outcome.sent {
            let name = network.devices.get(usize::from(port.0)).map_or("?", |device| &device.name);
            let _ = writeln!(text, "  > {name}: {}", describe(bytes));
        }
        for reason in &outcome.dropped {
            let _ = writeln!(text, "  {}", dropped(*reason));
        }
        (self.say)(&text);
    }

    fn summary(&self, network: &Network) -> String {
        let mut text = String::new();
        for device in &network.devices {
            let mac = device.mac.map(|byte| format!("{byte:02x}")).join(":");
            let how = if device.seen { "" } else { " (made up: nothing was sent to the director there)" };
            let _ = writeln!(text, "{}: {mac}{how}", device.name);
        }
        for (server, beginning) in &network.tunnels {
            let how = if beginning.seen { "" } else { " (made up: no capture shows it)" };
            let _ = writeln!(text, "tunnel to {server}: from {}{how}", beginning.address);
        }
        let Tally { frames, sent, returned, dropped, .. } = self;
        let total: u64 = dropped.values().sum();
        let _ = writeln!(text, "{frames} frames: {sent} sent, {returned} left to the host, {total} dropped");
        for (name, count) in dropped {
            let _ = writeln!(text, "  {name} {count}");
        }
        text
    }
}

/// Whether two names are one file's.
fn is_same(a: &Path, b: &Path) -> bool {
    let [a, b] = [a, b].map(|path| path.metadata().ok().map(|file| (file.dev(), file.ino())));
    a.is_some() && a == b
}

/// The capture that is written.
struct Output {
    to: BufWriter<Box<dyn Write>>,
    path: PathBuf,
    pcapng: bool,
}

impl Output {
    fn create(path: &Path, inputs: &[PathBuf], network: &Network) -> anyhow::Result<Self> {
        let file: Box<dyn Write> = if path == Path::new("-") {
            if io::stdout().is_terminal() {
                bail!("standard output is a terminal: pipe it to a program, or name a file after --out");
            }
            Box::new(io::stdout())
        } else {
            if let Some(input) = inputs.iter().find(|input| is_same(input, path)) {
                bail!(
                    "{} is {}, which is read: name another file after --out",
                    path.display(),
                    input.display()
                );
            }
            Box::new(File::create(path).with_context(|| format!("{} cannot be written", path.display()))?)
        };
        let pcapng = path.extension().is_some_and(|extension| extension == "pcapng");
        let mut output = Output { to: BufWriter::new(file), path: path.to_owned(), pcapng };
        let mut bytes = Vec::new();
        if pcapng {
            pcap::pcapng_section(&mut bytes);
            network.devices.iter().for_each(|device| {
                pcap::pcapng_interface(&mut bytes, &device.name, pcap::MAX_FRAME);
            });
        } else {
            pcap::pcap_header(&mut bytes);
        }
        output.append(&bytes)?;
        Ok(output)
    }

    /// Writes a frame that was sent because of frame `number`.
    fn write(&mut self, port: PortId, time: Duration, number: u64, bytes: &[u8]) -> anyhow::Result<()> {
        let comment = format!("sent on frame {number}");
        let wire_len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let direction = Some(Direction::Out);
        let interface = u32::from(port.0);
        let frame = pcap::Frame { interface, time, wire_len, direction, comment: &comment, bytes };
        let mut piece = Vec::new();
        if self.pcapng {
            pcap::pcapng_packet(&mut piece, &frame);
        } else {
            pcap::pcap_record(&mut piece, &frame);
        }
        self.append(&piece)
    }

    fn append(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.to.write_all(bytes).with_context(|| format!("{} cannot be written", self.path.display()))
    }

    fn finish(mut self) -> anyhow::Result<()> {
        self.to.flush().with_context(|| format!("{} cannot be written", self.path.display()))
    }
}
