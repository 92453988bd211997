//! The PROXY protocol, as a server reads it (HAProxy's `proxy-protocol.txt`, versions 1 and 2).

use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// The longest header of version 1, in bytes.
const LONGEST: usize = 107;

/// Reads a header and not a byte more: who the client is.
pub fn read(mut from: impl Read) -> io::Result<SocketAddr> {
    let mut start = [0; 12];
    from.read_exact(&mut start)?;
    if start == *SIGNATURE {
        let mut fixed = [0; 4];
        from.read_exact(&mut fixed)?;
        let mut block = vec![0; usize::from(u16::from_be_bytes([fixed[2], fixed[3]]))];
        from.read_exact(&mut block)?;
        return binary(fixed, &block).ok_or_else(|| wrong(&block));
    }
    let mut line = start.to_vec();
    while !line.ends_with(b"\r\n") {
        if line.len() >= LONGEST {
            return Err(wrong(&line));
        }
        let mut byte = [0];
        from.read_exact(&mut byte)?;
        line.extend(byte);
    }
    text(&line).ok_or_else(|| wrong(&line))
}

/// The client that a datagram's header tells of, and what is behind it.
pub fn of_datagram(datagram: &[u8]) -> io::Result<(SocketAddr, &[u8])> {
    let mut rest = datagram;
    let client = read(&mut rest)?;
    Ok((client, rest))
}

fn text(line: &[u8]) -> Option<SocketAddr> {
    let words: Vec<&str> = std::str::from_utf8(line).ok()?.trim_end().split(' ').collect();
    let ["PROXY", "TCP4" | "TCP6", from, _, port, _] = words[..] else { return None };
    Some(SocketAddr::new(from.parse().ok()?, port.parse().ok()?))
}

fn binary([command, family, ..]: [u8; 4], block: &[u8]) -> Option<SocketAddr> {
    let (ip, ports) = match family >> 4 {
        1 => (IpAddr::from(*block.first_chunk::<4>()?), block.get(8..12)?),
        2 => (IpAddr::from(*block.first_chunk::<16>()?), block.get(32..36)?),
        _ => return None,
    };
    (command == 0x21).then(|| SocketAddr::new(ip, u16::from_be_bytes([ports[0], ports[1]])))
}

fn wrong(bytes: &[u8]) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("no PROXY header: {}", bytes.escape_ascii()))
}
