//! What the demo shows: the topology with its counts, who answered, and how fast.

use super::method::Method;
use super::paint::Paint;
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use uvs_lab::http::Report;

/// Columns a bar may take.
const BAR: usize = 44;

/// The colours of client and director; servers take the following ones.
const CLIENT: usize = 0;
const DIRECTOR: usize = 1;

/// A real server as the picture shows it.
#[derive(Clone, Debug)]
pub(super) struct Server {
    pub(super) name: String,
    pub(super) address: SocketAddr,
    pub(super) weight: u32,
    pub(super) answers: usize,
}

/// The hosts in a row, with what went through them, and the way of answers that do not come back through the director.
pub(super) fn topology(
    paint: Paint,
    method: Method,
    client: IpAddr,
    service: SocketAddr,
    requests: usize,
    servers: &[Server; 2],
) -> String {
    let asked = format!("{} requests", thousands(requests));
    let client = boxed(paint, CLIENT, "client", &[&client.to_string(), "", &asked], 16);
    let (vip, port) = (service.ip().to_string(), format!("port {}, wrr", service.port()));
    let director = boxed(paint, DIRECTOR, "director", &[&vip, &port, method.words()], 16);
    let right = servers.iter().enumerate().flat_map(|(number, server)| {
        let weight = format!("weight {}", server.weight);
        let answers = format!("{} answers", thousands(server.answers));
        boxed(
            paint,
            DIRECTOR + 1 + number,
            &server.name,
            &[&server.address.to_string(), &weight, &answers],
            18,
        )
    });
    let right: Vec<String> = right.collect();
    let past = !method.answers_pass();
    let blank = " ".repeat(20);
    let mut picture = String::new();
    for (row, server) in right.iter().enumerate() {
        let (left, middle) = match row.checked_sub(2) {
            Some(row) if row < client.len() => (&*client[row], &director[row]),
            Some(row) if past => (if row == client.len() { UP } else { LINE }, &blank),
            _ => (&*blank, &blank),
        };
        let (near, far) = (client_wire(row), server_wire(row, method.between()));
        let _infallible = writeln!(picture, "  {left}{near}{middle}{far}{server}");
    }
    if past {
        let _infallible = writeln!(picture, "  {BACK}");
    }
    picture
}

/// The way of answers to the client, below its box, and from the servers.
const UP: &str = "         ▲          ";
const LINE: &str = "         │          ";
const BACK: &str = "         ╰───────── answers, from the virtual address ─────────────╯";

fn client_wire(row: usize) -> &'static str {
    match row {
        4 => "─────▶",
        5 => " eth0 ",
        _ => "      ",
    }
}

/// Between the director and its servers: a device for each, or what is `between`.
fn server_wire(row: usize, between: &str) -> String {
    let wire = match (row, between) {
        (1, "") => " eth1  ",
        (2, "") => "   ╭──▶",
        (4, "") => "───┤   ",
        (7, "") => "   ╰──▶",
        (8, "") => " eth2  ",
        (3 | 5 | 6, "") => "   │   ",
        (_, "") => "       ",
        (2, _) => "       ╭─▶",
        (4, between) => return format!("{between:─<7}┤  "),
        (7, _) => "       ╰─▶",
        (3 | 5 | 6, _) => "       │  ",
        _ => "          ",
    };
    wire.into()
}

/// A box with a title; every line is `width` + 4 columns wide.
fn boxed(paint: Paint, colour: usize, title: &str, lines: &[&str], width: usize) -> Vec<String> {
    let edge = |text: &str| paint.host(colour, text);
    let rule = "─".repeat(width.saturating_sub(title.chars().count() + 1));
    let mut rows = vec![format!("{}{}{}", edge("╭─ "), paint.bold(title), edge(&format!(" {rule}╮")))];
    rows.extend(lines.iter().map(|line| format!("{} {line:width$} {}", edge("│"), edge("│"))));
    rows.push(edge(&format!("╰{}╯", "─".repeat(width + 2))));
    rows
}

/// Who answered how often.
pub(super) fn shares(paint: Paint, servers: &[Server; 2]) -> String {
    let total = servers.iter().map(|server| server.answers).sum::<usize>();
    let most = servers.iter().map(|server| server.answers).max().unwrap_or(0);
    let mut text = format!("  {}\n", paint.bold("who answered"));
    for (number, server) in servers.iter().enumerate() {
        let _infallible = writeln!(
            text,
            "  {:>9}  {} {} {}",
            server.name,
            paint.host(DIRECTOR + 1 + number, &bar(server.answers, most)),
            thousands(server.answers),
            paint.dim(&format!("({:.1} %)", percent(server.answers, total))),
        );
    }
    text
}

/// How long the requests took.
pub(super) fn latency(paint: Paint, report: &Report) -> String {
    let counts = histogram(report.samples.iter().map(|sample| sample.latency));
    let most = counts.iter().map(|(_, count)| *count).max().unwrap_or(0);
    let mut text = format!("  {}\n", paint.bold("how long a request took, connecting included"));
    for (bound, count) in &counts {
        let label = format!("≤ {}", short(*bound));
        let _infallible =
            writeln!(text, "  {label:>9}  {} {}", paint.host(CLIENT, &bar(*count, most)), thousands(*count));
    }
    let points = [("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("max", 100.0)];
    let points =
        points.map(|(name, percent)| format!("{} {}", paint.dim(name), short(report.percentile(percent))));
    let _infallible = writeln!(text, "  {:>9}  {}", "", points.join("   "));
    text
}

/// Counts by upper bounds of 1, 2 and 5 times the powers of ten, from the first to the last that has any.
fn histogram(latencies: impl Iterator<Item = Duration>) -> Vec<(Duration, usize)> {
    let bounds =
        (0..8).flat_map(|power| [1, 2, 5].map(|step| Duration::from_micros(step * 10_u64.pow(power))));
    let mut counts: Vec<_> = bounds.map(|bound| (bound, 0)).collect();
    let last = counts.len() - 1;
    for latency in latencies {
        let place = counts.partition_point(|(bound, _)| *bound < latency);
        counts[place.min(last)].1 += 1;
    }
    let first = counts.iter().position(|(_, count)| *count > 0).unwrap_or(last);
    let end = counts.iter().rposition(|(_, count)| *count > 0).map_or(first, |place| place + 1);
    counts[first..end].to_vec()
}

/// A bar of up to [`BAR`] columns in steps of an eighth; anything above nothing shows.
fn bar(value: usize, most: usize) -> String {
    let eighths = if value == 0 { 0 } else { (value * BAR * 8 / most.max(1)).max(1) };
    let part = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"][eighths % 8];
    format!("{}{part}", "█".repeat(eighths / 8))
}

/// `12345` as `12,345`.
pub(super) fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A duration in three figures or so.
pub(super) fn short(duration: Duration) -> String {
    let micros = duration.as_micros();
    match micros {
        0..1_000 => format!("{micros} µs"),
        1_000..10_000 => format!("{:.1} ms", duration.as_secs_f64() * 1e3).replace(".0 ", " "),
        10_000..1_000_000 => format!("{} ms", micros / 1_000),
        _ => format!("{:.1} s", duration.as_secs_f64()).replace(".0 ", " "),
    }
}

fn percent(part: usize, whole: usize) -> f64 {
    part as f64 * 100.0 / whole.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use uvs_lab::http::Sample;

    fn servers() -> [Server; 2] {
        let server = |name: &str, address: &str, weight, answers| Server {
            name: name.into(),
            address: address.parse().unwrap(),
            weight,
            answers,
        };
        [server("rs1", "192.168.4.11:80", 2, 667), server("rs2", "192.168.5.12:80", 1, 333)]
    }

    #[test]
    fn the_topology_is_drawn_with_its_counts() {
        let client = "203.0.113.200".parse().unwrap();
        let service = "203.0.113.100:80".parse().unwrap();
        let expected = "
                                                       ╭─ rs1 ──────────────╮
                                                 eth1  │ 192.168.4.11:80    │
  ╭─ client ─────────╮      ╭─ director ───────╮   ╭──▶│ weight 2           │
  │ 203.0.113.200    │      │ 203.0.113.100    │   │   │ 667 answers        │
  │                  │─────▶│ port 80, wrr     │───┤   ╰────────────────────╯
  │ 1,000 requests   │ eth0 │ NAT by AF_XDP    │   │   ╭─ rs2 ──────────────╮
  ╰──────────────────╯      ╰──────────────────╯   │   │ 192.168.5.12:80    │
                                                   ╰──▶│ weight 1           │
                                                 eth2  │ 333 answers        │
                                                       ╰────────────────────╯
";
        assert_eq!(
            topology(Paint::plain(), Method::Nat, client, service, 1000, &servers()),
            expected.trim_start_matches('\n')
        );
    }

    #[test]
    fn answers_that_go_past_the_director_are_drawn() {
        let client = "203.0.113.200".parse().unwrap();
        let service = "203.0.113.100:80".parse().unwrap();
        let expected = "
                                                          ╭─ rs1 ──────────────╮
                                                          │ 192.168.4.11:80    │
  ╭─ client ─────────╮      ╭─ director ───────╮       ╭─▶│ weight 2           │
  │ 203.0.113.200    │      │ 203.0.113.100    │       │  │ 667 answers        │
  │                  │─────▶│ port 80, wrr     │router─┤  ╰────────────────────╯
  │ 1,000 requests   │ eth0 │ IP in IP         │       │  ╭─ rs2 ──────────────╮
  ╰──────────────────╯      ╰──────────────────╯       │  │ 192.168.5.12:80    │
           ▲                                           ╰─▶│ weight 1           │
           │                                              │ 333 answers        │
           │                                              ╰────────────────────╯
           ╰───────── answers, from the virtual address ─────────────╯
";
        let drawn = topology(Paint::plain(), Method::Tunnel, client, service, 1000, &servers());
        assert_eq!(drawn, expected.trim_start_matches('\n'));
        assert!(drawn.lines().all(|line| line.chars().count() <= 80));
    }

    #[test]
    fn bars_are_in_proportion_and_anything_shows() {
        assert_eq!(bar(667, 667), "█".repeat(BAR));
        assert_eq!(bar(333, 666), "█".repeat(BAR / 2));
        assert_eq!(bar(1, 100_000), "▏");
        assert_eq!(bar(0, 0), "");
        let text = shares(Paint::plain(), &servers());
        assert!(text.contains("667 (66.7 %)") && text.contains("333 (33.3 %)"), "{text}");
    }

    #[test]
    fn the_histogram_spans_what_there_is() {
        let sample = |micros| Sample { server: "rs1".into(), latency: Duration::from_micros(micros) };
        let report =
            Report { samples: [150, 200, 201, 1800, 2000].map(sample).to_vec(), ..Report::default() };
        let counts = histogram(report.samples.iter().map(|sample| sample.latency));
        let micros: Vec<_> = counts.iter().map(|(bound, count)| (bound.as_micros(), *count)).collect();
        assert_eq!(micros, [(200, 2), (500, 1), (1000, 0), (2000, 2)]);
        let text = latency(Paint::plain(), &report);
        assert!(text.contains("p50 201 µs") && text.contains("max 2 ms"), "{text}");
        assert_eq!(histogram([Duration::from_secs(100)].into_iter()).len(), 1);
        assert!(histogram(std::iter::empty()).is_empty());
    }

    #[test]
    fn numbers_read_easily() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(thousands(number), text);
        }
        for (micros, text) in
            [(5, "5 µs"), (1000, "1 ms"), (1540, "1.5 ms"), (20_400, "20 ms"), (1_500_000, "1.5 s")]
        {
            assert_eq!(short(Duration::from_micros(micros)), text);
        }
    }
}
