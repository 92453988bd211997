//! The control plane: services, control socket, configuration, netlink.

pub mod api;
pub mod capture;
pub mod client;
pub mod config;
pub mod director;
mod frame;
pub mod neighbours;
pub mod netlink;
pub mod options;
pub mod privilege;
pub mod real_server;
pub mod registry;
pub mod replay;
pub mod settings;
pub mod socket;
pub mod vips;
