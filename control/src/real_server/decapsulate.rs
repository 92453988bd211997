//! The decapsulator: a process that takes packets for virtual addresses out of their tunnels and gives them to the kernel,
//! where the kernel has no device that does.
//!
//! It receives by raw sockets (IP in IP, GRE) or a UDP socket (GUE): the kernel has put fragments together by then, has
//! checked what it checks, and does not answer that the protocol is unreachable. Only packets for virtual addresses that this
//! host was set up for pass: who can reach a real server cannot send to its other addresses by the tunnel.

mod strip;

use super::journal::{Journal, Place};
use super::process::Process;
use super::{Encapsulation, Error, Method, state};
use nix::cmsg_space;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};
use nix::unistd::setsid;
use socket2::{Domain, Protocol, Socket, Type};
use std::collections::BTreeSet;
use std::io::{self, BufRead, BufReader, IoSlice, IoSliceMut, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};
use strip::Wrapped;
use uvs_engine::link::tun::{self, Layer, Reach, Tun};
use uvs_engine::packet::protocol;

/// What the names of the devices begin with that packets enter the kernel by; a number follows.
const DEVICE_PREFIX: &str = "uvs-tun";

/// Raw sockets by IP version and protocol, and the device of the kernel that makes them unnecessary: it takes the packets
/// itself, and a socket would get another copy.
const IPIP: [(Domain, u8, Option<&str>); 4] = [
    (Domain::IPV4, protocol::IPV4, Some("tunl0")),
    (Domain::IPV4, protocol::IPV6, Some("sit0")),
    (Domain::IPV6, protocol::IPV6, Some("ip6tnl0")),
    (Domain::IPV6, protocol::IPV4, None),
];
const GRE: [(Domain, u8, Option<&str>); 2] =
    [(Domain::IPV4, protocol::GRE, Some("gre0")), (Domain::IPV6, protocol::GRE, Some("ip6gre0"))];

fn raw_sockets(kind: Encapsulation) -> &'static [(Domain, u8, Option<&'static str>)] {
    match kind {
        Encapsulation::Ipip => &IPIP,
        Encapsulation::Gre => &GRE,
        Encapsulation::Gue { .. } => &[],
    }
}

/// The devices of this kernel that decapsulate a kind of tunnel.
pub(super) fn kernel_devices(kind: Encapsulation) -> impl Iterator<Item = &'static str> {
    raw_sockets(kind).iter().filter_map(|(_, _, device)| *device).filter(|device| state::exists(device))
}

/// Whether some of it is left to a process of ours.
pub(super) fn is_needed(kind: Encapsulation) -> bool {
    matches!(kind, Encapsulation::Gue { .. }) || ours(kind).next().is_some()
}

fn ours(kind: Encapsulation) -> impl Iterator<Item = (Domain, u8)> {
    raw_sockets(kind)
        .iter()
        .filter(|(_, _, device)| device.is_none_or(|device| !state::exists(device)))
        .map(|(domain, protocol, _)| (*domain, *protocol))
}

/// A decapsulator that is there and waits to be told to begin: it ends if the process that started it does before that.
#[derive(Debug)]
pub(super) struct Starting {
    child: Child,
    process: Process,
}

const READY: &str = "ready";
const GO: &str = "go";

impl Starting {
    /// Starts the process. It has its device and sockets when this returns.
    pub(super) fn begin(kind: Encapsulation) -> Result<Self, Error> {
        let failed = Error::os("start the decapsulator");
        let program = match std::env::current_exe() {
            Ok(program) => program,
            Err(error) => return Err(failed(error)),
        };
        let mut command = Command::new(program);
        command.args(["real-server", "decapsulate"]);
        match kind {
            Encapsulation::Ipip => command.args(["--tun-type", "ipip"]),
            Encapsulation::Gre => command.args(["--tun-type", "gre"]),
            Encapsulation::Gue { port } => {
                command.args(["--tun-type", "gue", "--tun-port", &port.to_string()])
            }
        };
        command.current_dir("/").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().map_err(failed)?;
        let mut line = String::new();
        if let Some(said) = &mut child.stdout {
            let _an_end_says_as_much = BufReader::new(said).read_line(&mut line);
        }
        let process = Process::of(child.id());
        match (line.trim(), process) {
            (READY, Some(process)) => Ok(Starting { child, process }),
            ("" | READY, _) => Err(Error::Decapsulator("it ended without a word".to_owned())),
            (why, _) => Err(Error::Decapsulator(why.to_owned())),
        }
    }

    pub(super) fn process(&self) -> Process {
        self.process
    }

    /// It is written down who it is: it may go on.
    pub(super) fn go(mut self) -> Result<(), Error> {
        let told = self.child.stdin.as_mut().map_or(Ok(()), |input| writeln!(input, "{GO}"));
        told.map_err(|error| Error::Decapsulator(format!("it ended before it began ({error})")))
    }
}

/// Is the decapsulator: what `uvs real-server start` starts. Returns when it is not to go on.
///
/// # Errors
/// When it cannot begin, or its device or a socket fails.
pub fn run(kind: Encapsulation) -> Result<(), Error> {
    // The terminal of whoever started it is none of its business.
    let _it_leads_a_session_already = setsid();
    let tun = Tun::open(DEVICE_PREFIX, Layer::Packets, Reach::Others)
        .map_err(Error::os("make a TUN device (/dev/net/tun)"))?;
    let sockets = open(kind)?;
    println!("{READY}");
    io::stdout().flush().map_err(Error::os("say that it is ready"))?;
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line).map_err(Error::os("hear whether to begin"))?;
    if line.trim() != GO {
        return Ok(());
    }
    let mut allowed = Allowed { place: Place::here()?, kind, read: None, vips: BTreeSet::new() };
    let mut buffer = vec![0; 1 << 16];
    loop {
        let mut fds: Vec<_> =
            sockets.iter().map(|socket| PollFd::new(socket.socket.as_fd(), PollFlags::POLLIN)).collect();
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(Error::os("wait for packets")(error.into())),
        }
        let ready: Vec<_> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        for (socket, _) in sockets.iter().zip(ready).filter(|(_, ready)| *ready) {
            drain(socket, &tun, &mut allowed, &mut buffer)?;
        }
    }
}

/// Where wrapped packets come in.
struct Source {
    socket: Socket,
    wrapped: Wrapped,
    /// Whether what is received begins with the outer IPv4 header.
    with_header: bool,
}

fn open(kind: Encapsulation) -> Result<Vec<Source>, Error> {
    let mut sources = Vec::new();
    for (domain, number) in ours(kind) {
        let doing = || Error::os(format!("open a raw socket for protocol {number}"));
        let socket = match Socket::new(domain, Type::RAW, Some(Protocol::from(i32::from(number)))) {
            Err(error) if domain == Domain::IPV6 && lacks_family(&error) => continue,
            other => other.map_err(doing())?,
        };
        let wrapped = if number == protocol::GRE { Wrapped::Gre } else { Wrapped::Ip };
        prepare(&socket, domain).map_err(doing())?;
        sources.push(Source { socket, wrapped, with_header: domain == Domain::IPV4 });
    }
    if let Encapsulation::Gue { port } = kind {
        for (domain, any) in [
            (Domain::IPV4, IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
            (Domain::IPV6, IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
        ] {
            let doing = || Error::os(format!("take UDP port {port}"));
            let socket = match Socket::new(domain, Type::DGRAM, Some(Protocol::UDP)) {
                Err(error) if domain == Domain::IPV6 && lacks_family(&error) => continue,
                other => other.map_err(doing())?,
            };
            prepare(&socket, domain).map_err(doing())?;
            if domain == Domain::IPV6 {
                socket.set_only_v6(true).map_err(doing())?;
                tun::accept_udp6_without_checksum(socket.as_fd()).map_err(doing())?;
            }
            socket.bind(&SocketAddr::new(any, port).into()).map_err(doing())?;
            sources.push(Source { socket, wrapped: Wrapped::Gue, with_header: false });
        }
    }
    Ok(sources)
}

fn lacks_family(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EAFNOSUPPORT)
}

fn prepare(socket: &Socket, domain: Domain) -> io::Result<()> {
    /// Room for what arrives while another packet is on its way through the stack.
    const ROOM: usize = 4 << 20;
    socket.set_nonblocking(true)?;
    if setsockopt(socket, sockopt::RcvBufForce, &ROOM).is_err() {
        socket.set_recv_buffer_size(ROOM)?;
    }
    if domain == Domain::IPV4 {
        setsockopt(socket, sockopt::IpRecvTos, &true)?;
    } else {
        setsockopt(socket, sockopt::Ipv6RecvTClass, &true)?;
    }
    Ok(())
}

/// Takes what a socket has, at most as much as others can wait for.
fn drain(source: &Source, tun: &Tun, allowed: &mut Allowed, buffer: &mut [u8]) -> Result<(), Error> {
    const AT_ONCE: usize = 64;
    for _ in 0..AT_ONCE {
        let mut control = cmsg_space!([u8; 64]);
        let (length, class) = {
            let mut parts = [IoSliceMut::new(buffer)];
            let flags = MsgFlags::MSG_DONTWAIT;
            match recvmsg::<()>(source.socket.as_raw_fd(), &mut parts, Some(&mut control), flags) {
                Ok(message) => (message.bytes, traffic_class(message.cmsgs())),
                Err(Errno::EAGAIN) => return Ok(()),
                // An ICMP error about something sent, which nothing was; or the wait was interrupted.
                Err(Errno::EINTR | Errno::ECONNREFUSED | Errno::EHOSTUNREACH | Errno::ENETUNREACH) => {
                    continue;
                }
                Err(error) => return Err(Error::os("receive packets")(error.into())),
            }
        };
        let Some(bytes) = buffer.get_mut(..length) else { continue };
        let Some((bytes, class)) = (if source.with_header { payload4(bytes) } else { Some((bytes, class)) })
        else {
            continue;
        };
        if let Some(packet) = strip::strip(source.wrapped, bytes, class, |vip| allowed.contains(vip)) {
            // What the kernel has no memory for is lost, as on any queue.
            let _lost = tun.write(&[IoSlice::new(packet)]);
        }
    }
    Ok(())
}

fn traffic_class(messages: nix::Result<nix::sys::socket::CmsgIterator<'_>>) -> u8 {
    let found = messages.ok().and_then(|mut messages| {
        messages.find_map(|message| match message {
            ControlMessageOwned::Ipv4Tos(tos) => Some(tos),
            ControlMessageOwned::Ipv6TClass(class) => u8::try_from(class).ok(),
            _ => None,
        })
    });
    found.unwrap_or(0)
}

/// What an IPv4 packet carries, and its type of service.
fn payload4(bytes: &mut [u8]) -> Option<(&mut [u8], u8)> {
    let header = uvs_engine::packet::ipv4::Ipv4::parse(bytes, 0).ok()?;
    let (length, class) = (header.header_len(), header.tos());
    Some((&mut bytes[length..], class))
}

/// The virtual addresses whose packets may pass.
struct Allowed {
    place: Place,
    kind: Encapsulation,
    /// When the journals' directory had changed last as they were read, if that was a while before.
    read: Option<SystemTime>,
    vips: BTreeSet<IpAddr>,
}

impl Allowed {
    /// Whether this is one of them. One that is not known makes the journals be read again, if there are others by now.
    fn contains(&mut self, vip: IpAddr) -> bool {
        if !self.vips.contains(&vip) {
            self.refresh();
        }
        self.vips.contains(&vip)
    }

    fn refresh(&mut self) {
        /// Changes closer together than this may bear the same time.
        const SETTLED: Duration = Duration::from_secs(1);
        let changed =
            std::fs::metadata(self.place.directory()).and_then(|directory| directory.modified()).ok();
        if changed == self.read && changed.is_some() {
            return;
        }
        let settled = changed.filter(|at| at.elapsed().is_ok_and(|age| age > SETTLED));
        if let Ok(journals) = self.place.all() {
            let ours = |journal: &&Journal| journal.method == Method::Tunnel(self.kind);
            self.vips = journals.iter().filter(ours).map(|journal| journal.vip).collect();
            self.read = settled;
        }
    }
}
