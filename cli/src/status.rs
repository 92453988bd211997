//! `uvs status`: what a director is made of and how it fares.

use crate::{CANNOT_BEGIN, Socket, say};
use std::fmt::Write;
use std::process::ExitCode;
use uvs_control::api::{NextHopStatus, QueueStatus, Request, Response, Status};

/// Arguments of `uvs status`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: Socket,
}

/// Asks the director and prints its state.
pub(crate) fn run(args: &Args) -> ExitCode {
    let client = args.socket.client();
    let answer = client.ask(&Request::Status).and_then(|response| match response {
        Response::Status(status) => Ok(status),
        other => Err(client.unexpected(other)),
    });
    match answer {
        Ok(status) if args.json => match serde_json::to_string_pretty(&status) {
            Ok(text) => say(&format!("{text}\n")),
            Err(error) => tell!("uvs status: {error}"),
        },
        Ok(status) => say(&describe(&status)),
        Err(error) => {
            tell!("uvs status: {error}");
            return ExitCode::from(CANNOT_BEGIN);
        }
    }
    ExitCode::SUCCESS
}

fn describe(status: &Status) -> String {
    let mut text = String::new();
    let table = &status.table;
    let _ = writeln!(
        text,
        "uvs {}, process {}, up {}\n{} services, {} real servers; on a crash: {}\n",
        status.version,
        status.pid,
        duration(status.uptime),
        status.services,
        status.servers,
        status.on_crash
    );
    text.push_str("Device           MTU   Link  Program  Frames     Queues (worker)\n");
    for device in &status.devices {
        let queues: Vec<_> =
            device.queues.iter().map(|queue| format!("{} ({})", queue.queue, queue.worker)).collect();
        let link = if device.up { "up" } else { "down" };
        let _ = writeln!(
            text,
            "{:<16} {:<5} {link:<5} {:<8} {:<10} {}",
            device.name,
            device.mtu,
            device.mode,
            device.copy,
            queues.join(", ")
        );
    }
    text.push_str("\nWorker  Core  Busy    Received  Transmitted   Handed off      Dropped\n");
    for worker in &status.workers {
        let core = worker.core.map_or_else(|| "any".to_owned(), |core| core.to_string());
        let _ = writeln!(
            text,
            "{:<7} {core:<5} {:>3.0} % {:>11} {:>12} {:>12} {:>12}",
            worker.id,
            worker.busy * 100.0,
            worker.received,
            worker.transmitted,
            worker.handed_off,
            worker.dropped
        );
    }
    let _ = writeln!(
        text,
        "\nConnections {} of {}, {} in memory; made {}, expired {}, refused because full {}",
        table.connections,
        table.capacity,
        bytes(table.resident_bytes),
        table.inserted,
        table.expired,
        table.full
    );
    let _ = writeln!(
        text,
        "Given back to the kernel {}; frames waiting for their next hop {}",
        status.to_kernel, status.held
    );
    if status.captures > 0 {
        let _ = writeln!(text, "Captures running {}", status.captures);
    }
    let NextHopStatus { asked, passed_over, no_room } = status.next_hops;
    let _ = writeln!(
        text,
        "Next hops: the kernel was asked {asked} times, not asked because of too many questions {passed_over}, \
         without a place {no_room}\n"
    );
    drops(&mut text, status);
    events(&mut text, status);
    text
}

fn drops(text: &mut String, status: &Status) {
    let sum = |of: fn(&QueueStatus) -> u64| -> u64 {
        status.devices.iter().flat_map(|device| &device.queues).map(of).sum()
    };
    let drops = status.drops.iter().map(|drop| (drop.count, &*drop.reason, &*drop.explanation));
    let kernel = [
        (sum(|queue| queue.ring_full), "ring_full", "A receive ring was full: its worker was too slow."),
        (
            sum(|queue| queue.kernel_dropped),
            "kernel_dropped",
            "The kernel had no free chunk to receive into, or the frame was too long for one.",
        ),
        (
            sum(|queue| queue.transmit_refused),
            "transmit_refused",
            "The kernel did not take the frame to send.",
        ),
    ];
    let dropped: Vec<_> = drops.chain(kernel).filter(|(count, ..)| *count > 0).collect();
    if dropped.is_empty() {
        text.push_str("No frame was dropped.\n");
        return;
    }
    text.push_str("Dropped      Reason                Meaning\n");
    for (count, reason, explanation) in dropped {
        let _ = writeln!(text, "{count:<12} {reason:<21} {explanation}");
    }
}

/// What else happened; frames as such were counted above.
fn events(text: &mut String, status: &Status) {
    let said = ["received", "transmitted", "to_kernel"];
    let mut happened =
        status.events.iter().filter(|event| event.count > 0 && !said.contains(&&*event.event)).peekable();
    if happened.peek().is_some() {
        text.push_str("\nCounted      Event                 Meaning\n");
    }
    for event in happened {
        let _ = writeln!(text, "{:<12} {:<21} {}", event.count, event.event, event.explanation);
    }
}

fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, ..) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

fn bytes(count: u64) -> String {
    match count {
        0..1_024 => format!("{count} B"),
        1_024..1_048_576 => format!("{} KiB", count >> 10),
        1_048_576..10_737_418_240 => format!("{} MiB", count >> 20),
        _ => format!("{} GiB", count >> 30),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uvs_control::api::{DeviceStatus, DropCount, EventCount, TableStatus, WorkerStatus};

    #[test]
    fn a_director_is_described_on_one_screen() {
        let status = Status {
            version: "0.1.0".into(),
            pid: 77,
            uptime: 3_700,
            workers: vec![WorkerStatus {
                id: 0,
                core: Some(1),
                received: 12,
                transmitted: 10,
                handed_off: 0,
                dropped: 2,
                busy: 0.25,
            }],
            devices: vec![DeviceStatus {
                name: "eth1".into(),
                index: 3,
                mac: "02:00:00:00:00:01".into(),
                mtu: 1500,
                up: true,
                mode: "native".into(),
                copy: "copy".into(),
                queues: vec![QueueStatus { kernel_dropped: 1, ring_full: 7, ..QueueStatus::default() }],
            }],
            table: TableStatus {
                connections: 5,
                capacity: 100,
                resident_bytes: 3 << 20,
                ..TableStatus::default()
            },
            services: 1,
            servers: 2,
            drops: vec![
                DropCount { reason: "malformed".into(), explanation: "It lies.".into(), count: 2 },
                DropCount { reason: "truncated".into(), explanation: "It ends.".into(), count: 0 },
            ],
            events: [("received", 12), ("icmp_relayed", 3), ("icmp_sent", 0)]
                .map(|(event, count)| EventCount {
                    event: event.into(),
                    explanation: "It went.".into(),
                    count,
                })
                .into(),
            to_kernel: 4,
            held: 3,
            captures: 1,
            next_hops: NextHopStatus { asked: 6, passed_over: 2, no_room: 1 },
            on_crash: "guard".into(),
        };
        let expected = "uvs 0.1.0, process 77, up 1 h 1 min
1 services, 2 real servers; on a crash: guard

Device           MTU   Link  Program  Frames     Queues (worker)
eth1             1500  up    native   copy       0 (0)

Worker  Core  Busy    Received  Transmitted   Handed off      Dropped
0       1      25 %          12           10            0            2

Connections 5 of 100, 3 MiB in memory; made 0, expired 0, refused because full 0
Given back to the kernel 4; frames waiting for their next hop 3
Captures running 1
Next hops: the kernel was asked 6 times, not asked because of too many questions 2, without a place 1

Dropped      Reason                Meaning
2            malformed             It lies.
7            ring_full             A receive ring was full: its worker was too slow.
1            kernel_dropped        The kernel had no free chunk to receive into, or the frame was too long for one.

Counted      Event                 Meaning
3            icmp_relayed          It went.
";
        assert_eq!(describe(&status), expected);
    }
}
