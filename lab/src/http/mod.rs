//! HTTP/1.1 endpoints that check what they carry.
//!
//! | request | answer |
//! |---|---|
//! | `GET /` | the server's name and a newline |
//! | `GET /client` | the address and port that the server sees the client at, or is told, and a newline |
//! | `GET /bytes/N` | the first N bytes of the [`crate::stream`] |
//! | `PUT` or `POST /null` | the number of bytes and a newline; the body is not looked at |
//! | `PUT` or `POST` anything else | the SHA-256 of the body in hexadecimal and a newline |
//!
//! Every answer carries the server's name in its `Server` field. Connections are kept until either side closes them.

mod client;
mod load;
mod message;
pub mod proxy;
mod server;

pub use client::{Answer, Connection};
pub use load::{Load, Report, Sample};
pub(crate) use server::open as listen;
pub use server::{Server, serve};
