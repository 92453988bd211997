//! `uvs demo`: the main job in one command. Client, director and two real servers in four network namespaces of this
//! machine, 1,000 HTTP requests through the virtual service, every answer checked.

mod paint;
mod picture;
mod stage;

use anyhow::{Context, bail};
use paint::Paint;
use picture::{short, thousands};
use stage::{Stage, WEIGHTS};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use uvs_lab::http::{self, Load, Report};
use uvs_lab::{Error, cleanup};

/// How the namespaces of a demo that stays are named: `uvs-demo-client`, …
const KEPT: &str = "uvs-demo";

/// Requests made at the same time.
const CLIENTS: usize = 16;

/// Options of `uvs demo`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Leave everything standing and print commands to try
    #[arg(long, conflicts_with = "clean")]
    keep: bool,

    /// Remove what `--keep` left standing
    #[arg(long)]
    clean: bool,

    /// HTTP requests to make
    #[arg(long, default_value_t = 1000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    requests: u32,

    /// Be a real server of the demo: its name and address
    #[arg(long, hide = true, num_args = 2, value_names = ["NAME", "ADDRESS"])]
    serve: Option<Vec<String>>,
}

/// Runs the demo. The status is 0 when every answer was right, 1 when something went wrong and 2 when this machine does not
/// allow it to begin.
pub fn run(args: &Args) -> ExitCode {
    let outcome = match &args.serve {
        Some(server) => serve(server),
        None if args.clean => clean(),
        None => play(args),
    };
    outcome.unwrap_or_else(|error| match error.downcast_ref::<Error>() {
        Some(Error::Privilege) => {
            eprintln!("uvs demo: it makes network namespaces, which needs root: run it with sudo");
            ExitCode::from(2)
        }
        Some(Error::NoSuchKind(_)) => {
            eprintln!("uvs demo: {error}");
            ExitCode::from(2)
        }
        _ => {
            eprintln!("uvs demo: {error:#}");
            ExitCode::FAILURE
        }
    })
}

fn serve(server: &[String]) -> anyhow::Result<ExitCode> {
    let [name, address] = server else { bail!("--serve wants a name and an address") };
    let address: SocketAddr = address.parse().with_context(|| format!("{address:?} is not ADDRESS:PORT"))?;
    http::serve(address, name, || say("ready"))?;
    Ok(ExitCode::SUCCESS)
}

fn clean() -> anyhow::Result<ExitCode> {
    let removed = cleanup::remove_named(KEPT) + cleanup::remove_stale();
    say(&format!("{removed} network namespaces removed"));
    Ok(ExitCode::SUCCESS)
}

fn play(args: &Args) -> anyhow::Result<ExitCode> {
    let paint = Paint::for_stdout();
    if args.keep && cleanup::names().iter().any(|name| name.starts_with(KEPT)) {
        bail!("a demo is standing already: remove it with `uvs demo --clean`");
    }
    cleanup::end_on_signals("uvs demo: interrupted, everything it made is removed")?;
    cleanup::remove_stale();

    say(&format!(
        "\n  {}  {}\n",
        paint.bold("uvs demo"),
        paint.dim("four hosts in network namespaces, no kernel IPVS")
    ));
    let begin = Instant::now();
    let stage = Stage::build(args.keep.then(|| KEPT.to_string()))?;
    for command in stage.commands() {
        stage.ipvsadm(command.split(' '))?;
        say(&format!("  {} ipvsadm {command}", paint.dim("$")));
    }
    let built = begin.elapsed();
    let load = Load {
        clients: CLIENTS,
        limit: Duration::from_secs(5),
        ..Load::new(stage.service(), args.requests as usize)
    };
    let report = load.run(&stage.topology.client)?;
    show(paint, &stage, &report, &load)?;
    say(&format!(
        "  {}",
        paint.dim(&format!("set up in {}, shown in {} altogether", short(built), short(begin.elapsed())))
    ));

    let faults = faults(&stage, &report, load.requests);
    let code = verdict(paint, &stage, load.requests, &faults);
    if args.keep {
        invite(paint, &stage);
        stage.keep();
    }
    Ok(code)
}

fn show(paint: Paint, stage: &Stage, report: &Report, load: &Load) -> anyhow::Result<()> {
    let servers = stage.servers(report);
    say(&format!("\n{}", picture::topology(paint, stage.client(), stage.service(), load.requests, &servers)));
    say(&picture::shares(paint, &servers));
    say(&picture::latency(paint, report));
    say(&format!(
        "  {} requests in {}: {} a second, {CLIENTS} at a time, each on a connection of its own\n",
        thousands(report.samples.len()),
        short(report.elapsed),
        paint.bold(&format!("{:.0}", report.rate())),
    ));
    say(&format!("  {} ipvsadm -Ln --stats", paint.dim("$")));
    for line in stage.settled_stats()?.lines() {
        say(&format!("  {line}"));
    }
    say("");
    Ok(())
}

/// Everything that is not as it should be.
fn faults(stage: &Stage, report: &Report, requests: usize) -> Vec<String> {
    let mut faults = report.faults.clone();
    let all: u32 = WEIGHTS.iter().sum();
    for server in stage.servers(report) {
        let due = requests * server.weight as usize / all as usize;
        if faults.is_empty() && server.answers.abs_diff(due) > 1 {
            faults.push(format!("{} gave {} answers; its weight is due {due}", server.name, server.answers));
        }
    }
    faults
}

fn verdict(paint: Paint, stage: &Stage, requests: usize, faults: &[String]) -> ExitCode {
    if faults.is_empty() {
        say(&format!("  {} every answer was right, and each server had its share\n", paint.good("✔")));
        return ExitCode::SUCCESS;
    }
    say(&format!(
        "  {} {} things went wrong in {} requests",
        paint.bad("✘"),
        faults.len(),
        thousands(requests)
    ));
    for fault in faults.iter().take(10) {
        say(&format!("    {fault}"));
    }
    if faults.len() > 10 {
        say(&format!("    and {} more", faults.len() - 10));
    }
    say(&format!("\n  the director said:\n{}", stage.log()));
    ExitCode::FAILURE
}

fn invite(paint: Paint, stage: &Stage) {
    let (client, director) = (Stage::inside(&stage.topology.client), Stage::inside(&stage.topology.director));
    let (program, service) = (stage.program(), stage.service());
    say(&format!("  {}", paint.bold("it stays; things to try")));
    for command in [
        format!("{client} curl http://{}/", service.ip()),
        format!("{client} curl -o /dev/null http://{}/bytes/200000000", service.ip()),
        format!("{director} {program} ipvsadm -Ln"),
        format!(
            "{director} {program} ipvsadm -e -t {service} -r {} -m -w 0",
            stage.servers(&Report::default())[0].address
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
