//! Where captured frames go.

use anyhow::Context;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::time::Duration;
use uvs_engine::link::pcap::{self, Record};

/// Lines on standard output, or a pcapng file.
pub(super) struct Output {
    to: BufWriter<Box<dyn Write>>,
    pcapng: bool,
    name: String,
}

impl Output {
    pub(super) fn lines() -> Self {
        Output::new(Box::new(io::stdout()), false, "standard output".into())
    }

    /// A file with these interfaces; `-` is standard output.
    pub(super) fn file(path: &Path, interfaces: &[String], snap: u32) -> anyhow::Result<Self> {
        let mut output = if path.as_os_str() == "-" {
            Output::new(Box::new(io::stdout()), true, "standard output".into())
        } else {
            let name = path.display().to_string();
            let file = File::create(path).with_context(|| format!("{name} cannot be written"))?;
            Output::new(Box::new(file), true, name)
        };
        let mut header = Vec::new();
        pcap::pcapng_section(&mut header);
        interfaces.iter().for_each(|name| pcap::pcapng_interface(&mut header, name, snap));
        output.write(&header)?;
        Ok(output)
    }

    fn new(to: Box<dyn Write>, pcapng: bool, name: String) -> Self {
        Output { to: BufWriter::with_capacity(1 << 16, to), pcapng, name }
    }

    /// Takes one frame, whose line is `line`.
    pub(super) fn frame(&mut self, record: &Record, line: impl FnOnce() -> String) -> anyhow::Result<()> {
        if !self.pcapng {
            return self.write(line().as_bytes());
        }
        let frame = pcap::Frame {
            interface: u32::try_from(record.interface).unwrap_or(u32::MAX),
            time: record.time,
            wire_len: record.wire_len,
            direction: record.direction,
            comment: record.comment.as_deref().unwrap_or_default(),
            bytes: &record.bytes,
        };
        let mut block = Vec::new();
        pcap::pcapng_packet(&mut block, &frame);
        self.write(&block)
    }

    /// Takes what was lost of each interface, and lets everything be seen.
    pub(super) fn finish(
        &mut self,
        time: Duration,
        lost: impl Iterator<Item = Option<u64>>,
    ) -> anyhow::Result<()> {
        if self.pcapng {
            for (interface, lost) in (0..).zip(lost) {
                let Some(lost) = lost else { continue };
                let mut block = Vec::new();
                pcap::pcapng_statistics(&mut block, interface, time, lost);
                self.write(&block)?;
            }
        }
        self.flush()
    }

    fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.to.write_all(bytes).with_context(|| format!("{} cannot be written", self.name))
    }

    /// Lets everything be seen.
    pub(super) fn flush(&mut self) -> anyhow::Result<()> {
        self.to.flush().with_context(|| format!("{} cannot be written", self.name))
    }
}
