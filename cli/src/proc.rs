//! `uvs proc`: what a kernel with IPVS shows in files of these names under `/proc/net`, for those who read them.

use crate::{CANNOT_BEGIN, Socket, ipvsadm, say};
use clap::ValueEnum;
use std::fmt::{self, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use uvs_control::api::{
    ConnectionEntry, Counters, Method, Netmask, Protocol, Rates, Request, Response, ServiceEntry, ServiceId,
    Statistics,
};
use uvs_control::client::{Client, ClientError, Listing};

/// Arguments of `uvs proc`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// The file
    #[arg(value_enum)]
    file: File,
    #[command(flatten)]
    socket: Socket,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum File {
    /// Virtual services and their real servers
    #[value(name = "ip_vs")]
    Services,
    /// Helpers for applications: none
    #[value(name = "ip_vs_app")]
    Helpers,
    /// Connections
    #[value(name = "ip_vs_conn")]
    Connections,
    /// Connections, and which of them another director told of
    #[value(name = "ip_vs_conn_sync")]
    Origins,
    /// Sums and rates of all services
    #[value(name = "ip_vs_stats")]
    Sums,
    /// The sums of each worker, in the place of processors
    #[value(name = "ip_vs_stats_percpu")]
    SumsByWorker,
}

/// What the kernel counts a persistence timeout in: hundredths of a second, with 100 ticks a second.
const TICKS: u32 = 100;

/// Prints the file.
pub(crate) fn run(args: &Args) -> ExitCode {
    match text(&args.socket.client(), args.file) {
        Ok(text) => {
            say(&text);
            ExitCode::SUCCESS
        }
        Err(error) => {
            tell!("uvs proc: {error}");
            ExitCode::from(CANNOT_BEGIN)
        }
    }
}

fn text(client: &Client, file: File) -> Result<String, ClientError> {
    Ok(match file {
        File::Services => services(&client.services(None)?),
        File::Helpers => "prot port    usecnt name\n".to_owned(),
        File::Connections => {
            let mut text =
                "Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData\n"
                    .to_owned();
            client.connections(|entry| connection(&mut text, entry))?;
            text
        }
        File::Origins => {
            let mut text =
                "Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Origin Expires\n".to_owned();
            client.connections(|entry| synchronised(&mut text, entry))?;
            text
        }
        File::Sums => stats(&statistics(client)?),
        File::SumsByWorker => stats_by_worker(&statistics(client)?),
    })
}

fn statistics(client: &Client) -> Result<Statistics, ClientError> {
    match client.ask(&Request::Statistics)? {
        Response::Statistics(statistics) => Ok(statistics),
        other => Err(client.unexpected(other)),
    }
}

/// An address as the kernel writes it for programs: IPv4 as a number, IPv6 with all its digits.
struct Hex(IpAddr);

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            IpAddr::V4(address) => write!(f, "{:08X}", address.to_bits()),
            IpAddr::V6(address) => write_full(f, address),
        }
    }
}

fn write_full(f: &mut fmt::Formatter<'_>, address: Ipv6Addr) -> fmt::Result {
    let words = address.segments().map(|word| format!("{word:04x}"));
    f.write_str(&words.join(":"))
}

/// An address and a port, in brackets where the address has colons itself.
struct Place(SocketAddr);

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (address, port) = (Hex(self.0.ip()), self.0.port());
        if self.0.is_ipv6() { write!(f, "[{address}]:{port:04X}") } else { write!(f, "{address}:{port:04X}") }
    }
}

/// `ip_vs` (`ip_vs_info_seq_show`), blanks at line ends included.
fn services(listing: &Listing) -> String {
    let mut text = format!(
        "IP Virtual Server version {} (size={})\nProt LocalAddress:Port Scheduler Flags\n  \
         -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n",
        ipvsadm::IPVS_VERSION,
        listing.table_size
    );
    for entry in &listing.services {
        service(&mut text, entry);
    }
    text
}

fn service(text: &mut String, entry: &ServiceEntry) {
    let spec = &entry.service;
    let one_packet = if spec.one_packet { "ops " } else { "" };
    let _ = match spec.id {
        ServiceId::Address { protocol, address: address @ SocketAddr::V6(_) } => {
            write!(text, "{protocol}  {} {} ", Place(address), spec.scheduler)
        }
        ServiceId::Address { protocol, address } => {
            write!(text, "{protocol}  {} {} {one_packet} ", Place(address), spec.scheduler)
        }
        ServiceId::Mark { mark, .. } => write!(text, "FWM  {mark:08X} {} {one_packet}", spec.scheduler),
    };
    if let Some(seconds) = spec.persistent {
        let mask = match spec.netmask {
            Netmask::Ipv4(mask) => mask.to_bits(),
            // The number of bits in the order of the network.
            Netmask::Ipv6(bits) => u32::from(bits).swap_bytes(),
        };
        let _ = write!(text, "persistent {} {mask:08X}", seconds.wrapping_mul(TICKS));
    }
    text.push('\n');
    for server in &entry.servers {
        let (spec, activity) = (&server.server, &server.activity);
        let method = match spec.method {
            Method::Masquerading => "Masq",
            Method::FullNat => "FullNat",
            Method::Direct => "Route",
            Method::Tunnel(_) => "Tunnel",
        };
        let _ = writeln!(
            text,
            "  -> {}      {method:<7} {:<6} {:<10} {:<10}",
            Place(spec.address),
            spec.weight,
            activity.active,
            activity.inactive
        );
    }
}

/// What a line of a connection begins with, up to its state.
fn ends(entry: &ConnectionEntry) -> String {
    let ConnectionEntry { protocol, client, virtual_address, server, state, .. } = entry;
    let protocol = match *protocol {
        0 => "IP".to_owned(),
        number => {
            Protocol::from_number(number).map_or_else(|| format!("IP_{number}"), |known| known.to_string())
        }
    };
    format!(
        "{protocol:<3} {} {:04X} {} {:04X} {} {:04X} {state:<11}",
        Hex(client.ip()),
        client.port(),
        Hex(virtual_address.ip()),
        virtual_address.port(),
        Hex(server.ip()),
        server.port()
    )
}

/// A line of `ip_vs_conn` (`ip_vs_conn_seq_show`).
fn connection(text: &mut String, entry: &ConnectionEntry) {
    let engine = entry.engine.as_ref().map_or_else(String::new, |(name, data)| format!(" {name} {data}"));
    let _ = writeln!(text, "{} {:>7}{engine}", ends(entry), entry.expires);
}

/// A line of `ip_vs_conn_sync` (`ip_vs_conn_sync_seq_show`).
fn synchronised(text: &mut String, entry: &ConnectionEntry) {
    let _ = writeln!(text, "{} LOCAL  {:>7}", ends(entry), entry.expires);
}

fn sums(counters: &Counters) -> String {
    let Counters { connections, in_packets, out_packets, in_bytes, out_bytes } = counters;
    format!("{connections:8X} {in_packets:8X} {out_packets:8X} {in_bytes:16X} {out_bytes:16X}\n")
}

fn rates(rates: &Rates) -> String {
    let Rates { connections, in_packets, out_packets, in_bytes, out_bytes } = *rates;
    sums(&Counters { connections, in_packets, out_packets, in_bytes, out_bytes })
}

/// `ip_vs_stats` (`ip_vs_stats_show`).
fn stats(statistics: &Statistics) -> String {
    format!(
        "   Total Incoming Outgoing         Incoming         Outgoing\n   \
         Conns  Packets  Packets            Bytes            Bytes\n{}\n \
         Conns/s   Pkts/s   Pkts/s          Bytes/s          Bytes/s\n{}",
        sums(&statistics.total.counters),
        rates(&statistics.total.rates)
    )
}

/// `ip_vs_stats_percpu` (`ip_vs_stats_percpu_show`).
fn stats_by_worker(statistics: &Statistics) -> String {
    let mut text = "       Total Incoming Outgoing         Incoming         Outgoing\n\
                    CPU    Conns  Packets  Packets            Bytes            Bytes\n"
        .to_owned();
    for (number, worker) in statistics.workers.iter().enumerate() {
        let _ = write!(text, "{number:3X} {}", sums(worker));
    }
    let _ = write!(
        text,
        "  ~ {}\n     Conns/s   Pkts/s   Pkts/s          Bytes/s          Bytes/s\n    {}",
        sums(&statistics.total.counters),
        rates(&statistics.total.rates)
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use uvs_control::api::ServiceActivity;

    fn entry(protocol: u8, places: [&str; 3], state: &str, expires: u32) -> ConnectionEntry {
        let [client, virtual_address, server] = places.map(|place| place.parse().expect("a place"));
        let state = state.to_owned();
        ConnectionEntry { protocol, client, virtual_address, server, state, expires, engine: None }
    }

    /// Lines that Linux 6.1 printed.
    #[test]
    fn connections_as_the_kernel_prints_them() {
        for (entry, expected) in [
            (
                entry(6, ["10.1.0.77:6022", "10.0.0.3:22", "10.2.0.4:22"], "SYN_RECV", 52),
                "TCP 0A01004D 1786 0A000003 0016 0A020004 0016 SYN_RECV         52\n",
            ),
            (
                entry(17, ["10.1.0.44:4004", "10.0.0.1:53", "10.2.0.2:5353"], "UDP", 292),
                "UDP 0A01002C 0FA4 0A000001 0035 0A020002 14E9 UDP             292\n",
            ),
            (
                entry(6, ["[fd01::8]:5003", "[fd00::1]:80", "[fd02::1]:80"], "SYN_RECV", 52),
                "TCP fd01:0000:0000:0000:0000:0000:0000:0008 138B fd00:0000:0000:0000:0000:0000:0000:0001 0050 \
                 fd02:0000:0000:0000:0000:0000:0000:0001 0050 SYN_RECV         52\n",
            ),
        ] {
            let mut text = String::new();
            connection(&mut text, &entry);
            assert_eq!(text, expected);
        }
        let engine = Some(("sip".to_owned(), "1@x".to_owned()));
        let template = entry(17, ["10.1.0.44:0", "10.0.0.1:5060", "10.2.0.2:5060"], "NONE", 7);
        let mut text = String::new();
        connection(&mut text, &ConnectionEntry { engine, ..template.clone() });
        synchronised(&mut text, &template);
        assert_eq!(
            text,
            "UDP 0A01002C 0000 0A000001 13C4 0A020002 13C4 NONE              7 sip 1@x\n\
             UDP 0A01002C 0000 0A000001 13C4 0A020002 13C4 NONE        LOCAL        7\n"
        );
    }

    /// What Linux 6.1 printed, on one processor.
    #[test]
    fn sums_as_the_kernel_prints_them() {
        let counters =
            Counters { connections: 0x28, in_packets: 0x38, in_bytes: 0x8c0, ..Counters::default() };
        let rates = Rates { connections: 2, in_packets: 3, in_bytes: 0x76, ..Rates::default() };
        let statistics = Statistics { total: ServiceActivity { counters, rates }, workers: vec![counters] };
        assert_eq!(
            stats(&statistics),
            "   Total Incoming Outgoing         Incoming         Outgoing
   Conns  Packets  Packets            Bytes            Bytes
      28       38        0              8C0                0

 Conns/s   Pkts/s   Pkts/s          Bytes/s          Bytes/s
       2        3        0               76                0
"
        );
        assert_eq!(
            stats_by_worker(&statistics),
            "       Total Incoming Outgoing         Incoming         Outgoing
CPU    Conns  Packets  Packets            Bytes            Bytes
  0       28       38        0              8C0                0
  ~       28       38        0              8C0                0

     Conns/s   Pkts/s   Pkts/s          Bytes/s          Bytes/s
           2        3        0               76                0
"
        );
    }
}
