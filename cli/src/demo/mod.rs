//! `uvs demo`: the main job in one command. Client, director and two real servers in network namespaces of this machine, for
//! each forwarding method as its users wire them; requests over both IP versions, every answer checked.

mod method;
mod paint;
mod picture;
mod stage;

use anyhow::{Context, bail};
use method::Wanted;
use paint::Paint;
use picture::{short, thousands};
use stage::{Counted, Stage, V4, WEIGHTS, families};
use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use uvs_lab::Error;
use uvs_lab::cleanup::{self, Undo};
use uvs_lab::http::{self, Load, Report};

/// How the namespaces of a demo that stays are named: `uvs-demo-client`, …
const KEPT: &str = "uvs-demo";

/// Requests made at the same time.
const CLIENTS: usize = 16;

/// What `--help` says behind the options.
const DETAILS: &str = "\
For each method it builds the hosts in network namespaces of their own, sets them up with the commands that it prints, makes HTTP
requests over IPv4 and IPv6, and checks every answer, each real server's share, the client's address as real servers see it,
and whether answers pass the director. The machine's own network is not touched, and everything is removed at the end, also after
Ctrl-C. It needs root.

Exit status: 0 when everything was right, 1 when something was not, 2 when this machine does not allow it to begin.";

/// Options of `uvs demo`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = DETAILS)]
pub struct Args {
    /// The forwarding method to show [default: all, with --keep nat]
    #[arg(long, value_enum)]
    method: Option<Wanted>,

    /// Leave everything standing, which is of one method, and print commands to try
    #[arg(long, conflicts_with = "clean")]
    keep: bool,

    /// Remove what `--keep` left standing
    #[arg(long)]
    clean: bool,

    /// HTTP requests over IPv4 by the first method; a tenth of it by the others and over IPv6
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    requests: u32,

    /// Be a real server of the demo: its name and address
    #[arg(long, hide = true, num_args = 2, value_names = ["NAME", "ADDRESS"])]
    serve: Option<Vec<String>>,

    /// As a real server, expect the PROXY protocol
    #[arg(long, hide = true, requires = "serve")]
    proxied: bool,
}

/// Runs the demo. The status is 0 when every answer was right, 1 when something went wrong and 2 when this machine does not
/// allow it to begin.
pub fn run(args: &Args) -> ExitCode {
    let outcome = match &args.serve {
        Some(server) => serve(server, args.proxied),
        None if args.clean => clean(),
        None => play(args),
    };
    outcome.unwrap_or_else(|error| match error.downcast_ref::<Error>() {
        Some(Error::Privilege) => {
            tell!("uvs demo: it makes network namespaces, which needs root: run it with sudo");
            ExitCode::from(2)
        }
        Some(Error::NoSuchKind(_)) => {
            tell!("uvs demo: {error}");
            ExitCode::from(2)
        }
        _ => {
            tell!("uvs demo: {error:#}");
            ExitCode::FAILURE
        }
    })
}

fn serve(server: &[String], proxied: bool) -> anyhow::Result<ExitCode> {
    let [name, address] = server else { bail!("--serve wants a name and an address") };
    let address: SocketAddr = address.parse().with_context(|| format!("{address:?} is not ADDRESS:PORT"))?;
    http::serve(address, name, proxied, || say("ready"))?;
    Ok(ExitCode::SUCCESS)
}

fn clean() -> anyhow::Result<ExitCode> {
    let program = std::env::current_exe().context("cannot find the program that is running")?;
    for name in cleanup::names().iter().filter(|name| name.starts_with(&format!("{KEPT}-rs"))) {
        let restore = ["real-server", "stop"].map(OsString::from);
        drop(Undo::new(name, [vec![program.clone().into()], restore.to_vec()].concat()));
    }
    let removed = cleanup::remove_named(KEPT) + cleanup::remove_stale();
    say(&format!("{removed} network namespaces removed"));
    Ok(ExitCode::SUCCESS)
}

fn play(args: &Args) -> anyhow::Result<ExitCode> {
    let paint = Paint::for_stdout();
    let methods = args.method.unwrap_or(if args.keep { Wanted::Nat } else { Wanted::All }).methods();
    if args.keep && methods.len() > 1 {
        bail!("only one method can be kept standing: name it with --method");
    }
    if args.keep && cleanup::names().iter().any(|name| name.starts_with(KEPT)) {
        bail!("a demo is standing already: remove it with `uvs demo --clean`");
    }
    cleanup::end_on_signals("uvs demo: interrupted, everything it made is removed")?;
    cleanup::remove_stale();
    say(&format!(
        "\n  {}  {}",
        paint.bold("uvs demo"),
        paint.dim("hosts in network namespaces, no kernel IPVS")
    ));
    let begin = Instant::now();
    let (mut faults, mut kept) = (Vec::new(), None);
    for method in methods {
        let stage = Stage::build(*method, args.keep.then(|| KEPT.to_string()))?;
        let show =
            Show { paint, stage: &stage, first: *method == methods[0], requests: args.requests as usize };
        let found = show.play()?;
        if !found.is_empty() {
            say(&format!("\n  the director said:\n{}", stage.log()));
        }
        faults.extend(found);
        kept = args.keep.then_some(stage);
    }
    let code = verdict(paint, begin.elapsed(), &faults);
    if let Some(stage) = kept {
        invite(paint, &stage);
        stage.keep();
    }
    Ok(code)
}

/// One method on its stage.
struct Show<'a> {
    paint: Paint,
    stage: &'a Stage,
    /// Whether it is the first one, which is shown at length.
    first: bool,
    requests: usize,
}

/// What came of one IP version.
struct Run {
    family: IpAddr,
    report: Report,
    /// The address at which a real server saw the client.
    seen: Result<IpAddr, String>,
    counted: Counted,
}

impl Show<'_> {
    /// Shows it; everything that was not as it should be.
    fn play(&self) -> anyhow::Result<Vec<String>> {
        let Show { paint, stage, .. } = *self;
        say(&format!("\n  {}  {}\n", paint.bold(stage.method.title()), paint.dim(stage.method.idea())));
        let begin = Instant::now();
        for family in families() {
            stage.set_up(family)?;
        }
        self.tell_commands();
        let set_up = begin.elapsed();
        let mut runs = Vec::new();
        let mut faults = Vec::new();
        for family in families() {
            let run = self.run(family)?;
            faults.extend(self.faults(&run));
            runs.push(run);
        }
        if let Some(first) = runs.first() {
            self.tell_at_length(first, set_up);
        }
        for run in &runs {
            self.tell(run);
        }
        let options = if self.first { "-Ln --stats" } else { "-Ln" };
        say(&format!("\n  {} ipvsadm {options}", paint.dim("$")));
        stage.settled(options)?.lines().for_each(|line| say(&format!("  {line}")));
        let titled = |fault: String| format!("{}: {fault}", stage.method.title());
        Ok(faults.into_iter().map(titled).collect())
    }

    /// The commands that were typed for IPv4.
    fn tell_commands(&self) {
        let Show { paint, stage, .. } = *self;
        for command in stage.real_server_commands(V4) {
            say(&format!("  {} uvs {command}", paint.dim("rs1, rs2 $")));
        }
        for command in stage.commands(V4) {
            say(&format!("  {} ipvsadm {command}", paint.dim("$")));
        }
        if let Some(six) = families().iter().find(|family| family.is_ipv6()) {
            say(&format!("  {}", paint.dim(&format!("… and the same for {}", stage.service(*six)))));
        }
    }

    /// Makes the requests of one IP version.
    fn run(&self, family: IpAddr) -> anyhow::Result<Run> {
        let stage = self.stage;
        let requests =
            if self.first && family.is_ipv4() { self.requests } else { self.requests.div_ceil(10) };
        let limit = Duration::from_secs(5);
        let load = Load { clients: CLIENTS, limit, ..Load::new(stage.service(family), requests) };
        let report = load.run(&stage.topology.client)?;
        let counted = stage.counted(family)?;
        let seen = stage.seen_client(family).map_err(|error| format!("{error:#}"));
        Ok(Run { family, report, seen, counted })
    }

    /// The picture, and for the first method how it went in detail.
    fn tell_at_length(&self, run: &Run, set_up: Duration) {
        let Show { paint, stage, .. } = *self;
        let servers = stage.servers(&run.report);
        let client = stage.topology.client_address(run.family);
        let service = stage.service(run.family);
        let asked = run.report.samples.len();
        say(&format!("\n{}", picture::topology(paint, stage.method, client, service, asked, &servers)));
        if self.first {
            say(&picture::shares(paint, &servers));
            say(&picture::latency(paint, &run.report));
            say(&format!(
                "  {} requests in {}: {} a second, {CLIENTS} at a time, each on a connection of its own; set up in {}\n",
                thousands(asked),
                short(run.report.elapsed),
                paint.bold(&format!("{:.0}", run.report.rate())),
                short(set_up),
            ));
        }
    }

    /// One IP version in a line.
    fn tell(&self, run: &Run) {
        let faults = self.faults(run);
        let mark = if faults.is_empty() { self.paint.good("✔") } else { self.paint.bad("✘") };
        let version = if run.family.is_ipv4() { "IPv4" } else { "IPv6" };
        let seen = run.seen.as_ref().map_or_else(|_| "nobody".into(), ToString::to_string);
        let way = if self.stage.method.answers_pass() { "through" } else { "past" };
        let [one, other] = self.stage.servers(&run.report).map(|server| thousands(server.answers));
        say(&format!(
            "  {mark} {version}: rs1 answered {one}, rs2 {other}, {way} the director; their client is {seen}"
        ));
    }

    /// Everything that is not as it should be.
    fn faults(&self, run: &Run) -> Vec<String> {
        let stage = self.stage;
        let Counted { connections, in_packets, out_packets } = run.counted;
        let mut faults = run.report.faults.clone();
        let all: u32 = WEIGHTS.iter().sum();
        let requests = run.report.samples.len();
        for server in stage.servers(&run.report) {
            let due = requests * server.weight as usize / all as usize;
            if faults.is_empty() && server.answers.abs_diff(due) > 1 {
                faults.push(format!(
                    "{} gave {} answers; its weight is due {due}",
                    server.name, server.answers
                ));
            }
        }
        let expected = stage.topology.client_address(run.family);
        match &run.seen {
            Ok(seen) if *seen == expected => {}
            Ok(seen) => faults.push(format!("a real server saw {seen} where it should see {expected}")),
            Err(error) => faults.push(error.clone()),
        }
        if connections < requests as u64 || in_packets <= connections {
            faults.push(format!(
                "the director counted {connections} connections and {in_packets} packets of {requests} requests"
            ));
        }
        if (out_packets > 0) != stage.method.answers_pass() {
            faults.push(format!("{out_packets} packets of answers passed the director"));
        }
        faults
    }
}

fn verdict(paint: Paint, took: Duration, faults: &[String]) -> ExitCode {
    if faults.is_empty() {
        let took = paint.dim(&format!("shown in {}", short(took)));
        say(&format!(
            "\n  {} every answer was right, and each server had its share  {took}\n",
            paint.good("✔")
        ));
        return ExitCode::SUCCESS;
    }
    say(&format!("\n  {} {} things went wrong", paint.bad("✘"), faults.len()));
    for fault in faults.iter().take(10) {
        say(&format!("    {fault}"));
    }
    if faults.len() > 10 {
        say(&format!("    and {} more", faults.len() - 10));
    }
    ExitCode::FAILURE
}

fn invite(paint: Paint, stage: &Stage) {
    let (client, director) = (Stage::inside(&stage.topology.client), Stage::inside(&stage.topology.director));
    let (program, service) = (stage.program(), stage.service(V4));
    say(&format!("  {}", paint.bold("it stays; things to try")));
    for command in [
        format!("{client} curl http://{}/", service.ip()),
        format!("{client} curl -o /dev/null http://{}/bytes/200000000", service.ip()),
        format!("{director} {program} ipvsadm -Ln"),
        format!("{director} {program} capture -c 20"),
        format!(
            "{director} {program} ipvsadm -e -t {service} -r {} {} -w 0",
            stage.servers(&Report::default())[0].address,
            stage.method.option()
        ),
        format!("{director} {program} status"),
    ] {
        say(&format!("  {} {command}", paint.dim("$")));
    }
    say(&format!("  {}", paint.bold("and to remove it")));
    say(&format!("  {} {program} demo --clean\n", paint.dim("$")));
}

/// Prints a line. That nobody reads on is no mistake.
fn say(line: &str) {
    crate::say(&format!("{line}\n"));
}
