//! Packet sockets (`AF_PACKET`): for devices and kernels that have no AF_XDP.
//!
//! A packet socket gets a copy of each frame that its device receives, so two more are needed to make a link of it: a
//! [`View`] of what is ours, which everything else is left to the kernel by, and a guard that drops from the kernel's
//! way what was taken ([`crate::steer::Guarded::AllTaken`]). Frames come through a ring that is shared with the kernel;
//! super-frames (GRO, or a veth peer's TSO) are longer than its slots and are read one by one, by `recvmsg`. Those of UDP are cut
//! here, where the kernel says into what; those of TCP by the pipeline, for the device that they leave by. Frames leave
//! by `sendmmsg`, which copies them: the slots of a transmit ring are given back when the driver lets go of a frame, which
//! veth and loopback devices do while the receiver still reads it.
//!
//! Nothing here is faster than AF_XDP. What it gives is that the director works wherever there is an Ethernet device.
//!
//! [`View`]: crate::steer::View

mod ring;
mod socket;
mod sys;

pub use socket::{Options, Probe, Socket};
