//! The control plane: services, control socket, configuration, netlink.

pub mod netlink;
