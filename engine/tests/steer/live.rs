//! The XDP program on devices.

use super::{CLIENT, Outcome, PATIENCE, RawTcp, Site, TO_CLIENT, VIP, check};
use socket2::{Domain, Socket, Type};
use std::os::fd::AsFd;
use uvs_engine::steer::{Mode, SteerError, Steering, WantedMode};
use uvs_lab::probe::ping;

type Test = (&'static str, fn() -> Outcome);

pub(super) const TESTS: &[Test] = &[
    ("xdp::native_takes_only_ours", || takes_only_ours(Mode::Native)),
    ("xdp::generic_takes_only_ours", || takes_only_ours(Mode::Generic)),
    ("xdp::auto_prefers_native", auto_prefers_native),
    ("xdp::auto_falls_back_to_generic", auto_falls_back_to_generic),
    ("xdp::says_who_claims_the_device", says_who_claims_the_device),
    ("xdp::no_such_device", no_such_device),
];

fn steering() -> Result<Steering, SteerError> {
    let mut steering = Steering::new()?;
    steering.add_service(VIP.into(), 80, super::frames::TCP)?;
    Ok(steering)
}

/// An AF_XDP socket that is bound to nothing swallows what it is handed.
fn socket() -> Socket {
    Socket::new(Domain::from(libc::AF_XDP), Type::from(libc::SOCK_RAW), None).unwrap()
}

fn takes_only_ours(mode: Mode) -> Outcome {
    let site = Site::build()?;
    let probe = RawTcp::open(&site.client)?;
    let (steering, socket) = (steering()?, socket());
    let ifindex = site.ifindex(TO_CLIENT);
    check(site.resets(&probe, 80)?, "the kernel answers for the VIP before")?;
    let attach = || steering.attach(ifindex, WantedMode::Only(mode), &[(0, socket.as_fd())]);
    let attachment = site.director.run(attach)??;
    check(attachment.mode() == mode, "the mode is the one asked for")?;
    check(attachment.takes_fragments(), "frames of several buffers are taken")?;
    check(!site.resets(&probe, 80)?, "frames to the service leave the kernel's sight")?;
    check(site.resets(&probe, 81)?, "frames to another port do not")?;
    check(ping(&site.client, VIP.into(), PATIENCE)?, "the VIP answers a ping")?;
    check(ping(&site.director, CLIENT.into(), PATIENCE)?, "the director's own traffic flows")?;
    drop(socket);
    check(site.resets(&probe, 80)?, "without a socket the kernel has the frames")?;
    drop(attachment);
    check(site.resets(&probe, 80)?, "without the program the kernel has the frames")
}

fn auto_prefers_native() -> Outcome {
    let site = Site::build()?;
    let (steering, ifindex) = (steering()?, site.ifindex(TO_CLIENT));
    let attachment = site.director.run(|| steering.attach(ifindex, WantedMode::Auto, &[]))??;
    check(attachment.mode() == Mode::Native, "veth runs it natively")?;
    check(attachment.refused().is_none(), "nothing was refused")
}

/// A bridge has no native mode.
fn auto_falls_back_to_generic() -> Outcome {
    let site = Site::build()?;
    site.director.net().add_bridge("br0")?;
    let (steering, ifindex) = (steering()?, site.ifindex("br0"));
    let attachment = site.director.run(|| steering.attach(ifindex, WantedMode::Auto, &[]))??;
    check(attachment.mode() == Mode::Generic, "the mode is generic")?;
    let why = attachment.refused().map(ToString::to_string).unwrap_or_default();
    check(why.starts_with("br0 does not take an XDP program in native mode"), why)
}

fn says_who_claims_the_device() -> Outcome {
    let site = Site::build()?;
    let (steering, ifindex) = (steering()?, site.ifindex(TO_CLIENT));
    for (first, second, command) in [
        (Mode::Native, Mode::Native, "ip link set dev d0 xdpdrv off"),
        (Mode::Generic, Mode::Native, "ip link set dev d0 xdpgeneric off"),
        (Mode::Native, Mode::Generic, "ip link set dev d0 xdpdrv off"),
    ] {
        let attach = |mode| site.director.run(|| steering.attach(ifindex, WantedMode::Only(mode), &[]));
        let _first = attach(first)??;
        match attach(second)? {
            Err(error @ SteerError::Claimed { .. }) => check(
                error
                    .to_string()
                    .contains(&format!("another XDP program is attached to d0; remove it with `{command}`")),
                error,
            )?,
            other => return Err(format!("{first}, then {second}: {other:?}").into()),
        }
    }
    Ok(())
}

fn no_such_device() -> Outcome {
    let site = Site::build()?;
    let steering = steering()?;
    match site.director.run(|| steering.attach(4711, WantedMode::Auto, &[]))? {
        Err(SteerError::NoDevice(4711)) => Ok(()),
        other => Err(format!("{other:?}").into()),
    }
}
