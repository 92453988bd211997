//! How frames are taken from each device: AF_XDP in the driver, without a copy or with one; AF_XDP in the kernel's generic
//! path; packet sockets. The highest rung that a device and its kernel offer is taken, unless one is asked for.

use super::StartError;
use crate::options::{Io, RunOptions, XdpMode};
use std::fmt::Write;
use uvs_engine::PortId;
use uvs_engine::link::{self, Device, raw, xdp};
use uvs_engine::steer::{Attachment, Mode, SteerError, Steering, WantedMode};
use uvs_engine::worker::{Crew, Lane, Link, Seat};

/// The devices with their queues bound, and their steering programs, which take nothing before there are services.
pub(super) struct Climbed {
    pub(super) crew: Crew,
    pub(super) attachments: Vec<Attachment>,
}

/// How one device is tried.
struct Rung<'a> {
    device: &'a Device,
    /// By packet sockets, if not by AF_XDP.
    raw: bool,
    /// Why not by AF_XDP.
    because: Option<String>,
}

/// What did not work, and on which device; `None`: on none.
struct Fault {
    error: StartError,
    device: Option<u32>,
    /// Whether packet sockets may do better.
    refused: bool,
}

/// Opens every device by the best way there is, for one worker per entry of `cores`, and says in the log what was got.
pub(super) fn climb(
    options: &RunOptions,
    devices: &[Device],
    cores: &[Option<usize>],
    steering: &Steering,
) -> Result<Climbed, StartError> {
    let raw = options.io == Io::Raw;
    let mut rungs: Vec<_> = devices.iter().map(|device| Rung { device, raw, because: None }).collect();
    let climbed = loop {
        match open(&rungs, options.xdp_mode, cores, steering) {
            Ok(climbed) => break climbed,
            Err(fault) => fall(&mut rungs, options, fault)?,
        }
    };
    for (rung, port) in rungs.iter().zip(0_u16..) {
        let attachment =
            climbed.attachments.iter().find(|attachment| attachment.ifindex() == rung.device.index);
        let lanes: Vec<_> = climbed.crew.lanes().iter().filter(|lane| lane.port.0 == port).collect();
        tracing::info!("{}", what_was_got(rung, attachment, &lanes));
    }
    Ok(climbed)
}

/// Whether frames come from a device only after the kernel, or a veth peer, may have merged them to super-frames: by all ways
/// but the driver's.
pub(super) fn merges(attachments: &[Attachment], ifindex: u32) -> bool {
    attachments
        .iter()
        .find(|attachment| attachment.ifindex() == ifindex)
        .is_none_or(|attachment| attachment.mode() == Mode::Generic)
}

/// Goes one rung down with the devices that a fault is about, or gives it back.
fn fall(rungs: &mut [Rung<'_>], options: &RunOptions, fault: Fault) -> Result<(), StartError> {
    let may_fall = options.io == Io::Auto && options.xdp_mode == XdpMode::Auto && fault.refused;
    let mut fallen = false;
    for rung in rungs.iter_mut().filter(|rung| may_fall && !rung.raw) {
        if fault.device.is_none_or(|index| index == rung.device.index) {
            rung.raw = true;
            rung.because = Some(fault.error.to_string());
            fallen = true;
        }
    }
    if fallen { Ok(()) } else { Err(fault.error) }
}

fn open(
    rungs: &[Rung<'_>],
    mode: XdpMode,
    cores: &[Option<usize>],
    steering: &Steering,
) -> Result<Climbed, Fault> {
    let seats: Vec<Seat> =
        rungs.iter().zip(0..).map(|(rung, port)| seat(rung, port, mode, steering)).collect();
    let crew = Crew::open(&seats, cores).map_err(|error| of_link(rungs, error))?;
    let wanted = match mode {
        XdpMode::Auto => WantedMode::Auto,
        XdpMode::Native => WantedMode::Only(Mode::Native),
        XdpMode::Generic => WantedMode::Only(Mode::Generic),
    };
    let mut attachments = Vec::new();
    for (rung, port) in rungs.iter().zip(0_u16..).filter(|(rung, _)| !rung.raw) {
        let lanes = crew.lanes().iter().filter(|lane| lane.port.0 == port);
        let sockets: Vec<_> =
            lanes.filter_map(|lane| lane.probe.xdp_socket().map(|socket| (lane.queue, socket))).collect();
        let attached = steering.attach(rung.device.index, wanted, &sockets);
        attachments.push(attached.map_err(|error| of_steering(rung.device.index, error))?);
    }
    Ok(Climbed { crew, attachments })
}

fn seat(rung: &Rung<'_>, port: u16, mode: XdpMode, steering: &Steering) -> Seat {
    let link = if rung.raw {
        Link::Raw(raw::Options::new(steering.view()))
    } else {
        Link::Xdp(xdp::Options { zero_copy: mode != XdpMode::Generic, ..xdp::Options::default() })
    };
    Seat { port: PortId(port), device: rung.device.clone(), link }
}

fn of_link(rungs: &[Rung<'_>], error: link::Error) -> Fault {
    let named =
        |name: &str| rungs.iter().find(|rung| rung.device.name == *name).map(|rung| rung.device.index);
    let (device, refused) = match &error {
        link::Error::NoAfXdp => (None, true),
        link::Error::Mtu { device, .. } | link::Error::Kernel { device, .. } => (named(device), true),
        _ => (None, false),
    };
    Fault { error: error.into(), device, refused }
}

fn of_steering(device: u32, error: SteerError) -> Fault {
    let refused = matches!(error, SteerError::Unsupported { .. } | SteerError::NoSupport { .. });
    Fault { error: error.into(), device: Some(device), refused }
}

/// What the log says of a device.
fn what_was_got(rung: &Rung<'_>, attachment: Option<&Attachment>, lanes: &[&Lane]) -> String {
    let Rung { device: Device { name, mtu, .. }, because, .. } = rung;
    let count = lanes.len();
    let Some(attachment) = attachment else {
        let sockets = if count == 1 { "packet socket" } else { "packet sockets" };
        let because = because.as_ref().map(|because| format!(", because {because}")).unwrap_or_default();
        return format!("{name}: raw, {count} {sockets}, MTU {mtu}{because}");
    };
    let mut got = format!(
        "{name}: {} mode, {}, {count} {}, MTU {mtu}",
        attachment.mode(),
        if lanes.iter().all(|lane| lane.zero_copy) { "zero-copy" } else { "copy" },
        if count == 1 { "queue" } else { "queues" },
    );
    if lanes.iter().all(|lane| lane.multi_buffer) {
        got += ", multi-buffer";
    }
    if let Some(refused) = attachment.refused() {
        // Writing to a string succeeds.
        let _written = write!(got, "; not native, because {refused}");
    }
    got
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(name: &str, index: u32) -> Device {
        Device { name: name.into(), index, mac: [2, 0, 0, 0, 0, 1], mtu: 9000, queues: 1, up: true }
    }

    fn after(io: Io, mode: XdpMode, error: link::Error) -> Result<[bool; 2], StartError> {
        let devices = [device("eth0", 1), device("eth1", 2)];
        let mut rungs = devices.each_ref().map(|device| Rung { device, raw: io == Io::Raw, because: None });
        let options = RunOptions { io, xdp_mode: mode, ..RunOptions::default() };
        let fault = of_link(&rungs, error);
        fall(&mut rungs, &options, fault)?;
        Ok([rungs[0].raw, rungs[1].raw])
    }

    #[test]
    fn only_what_packet_sockets_may_mend_is_mended_by_them() {
        let mtu = || link::Error::Mtu { device: "eth1".into(), mtu: 9000, limit: 3818 };
        let auto = (Io::Auto, XdpMode::Auto);
        assert_eq!(after(auto.0, auto.1, link::Error::NoAfXdp).ok(), Some([true, true]));
        assert_eq!(after(auto.0, auto.1, mtu()).ok(), Some([false, true]));
        for (io, mode, error) in [
            (Io::Xdp, XdpMode::Auto, mtu()),
            (Io::Auto, XdpMode::Native, mtu()),
            (Io::Raw, XdpMode::Auto, mtu()),
            (Io::Auto, XdpMode::Auto, link::Error::Busy { device: "eth1".into(), queue: 0 }),
            (Io::Auto, XdpMode::Auto, link::Error::LockedMemory { mebibytes: 16 }),
        ] {
            let sentence = error.to_string();
            assert_eq!(after(io, mode, error).unwrap_err().to_string(), sentence);
        }
    }

    #[test]
    fn the_log_says_why() {
        let device = device("eth0", 1);
        let because = Some(link::Error::NoAfXdp.to_string());
        assert_eq!(
            what_was_got(&Rung { device: &device, raw: true, because }, None, &[]),
            "eth0: raw, 0 packet sockets, MTU 9000, because this kernel has no AF_XDP sockets: it must be built with \
             CONFIG_XDP_SOCKETS=y"
        );
    }
}
