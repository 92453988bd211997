//! The log on standard error. A log that nobody can be given any more is lost, and nothing else is: its reader may be gone,
//! its terminal closed, its file system full.

use std::io::{self, IsTerminal, Write};
use tracing_subscriber::filter::LevelFilter;

/// From now on the log goes to standard error.
pub(crate) fn init() {
    tracing_subscriber::fmt()
        .with_writer(|| Lossy(io::stderr()))
        .with_ansi(io::stderr().is_terminal())
        .with_max_level(LevelFilter::INFO)
        .with_target(false)
        // It would be said on standard error too, by a macro that panics when that fails.
        .log_internal_errors(false)
        .init();
}

/// Says something on standard error.
pub(crate) fn say(text: &str) {
    let _nobody_listens = io::stderr().write_all(text.as_bytes());
}

/// Says a line, formatted, on standard error, where `eprintln` would panic when nobody listens any more.
macro_rules! tell {
    ($($words:tt)*) => { $crate::log::say(&format!("{}\n", format_args!($($words)*))) };
}

/// Takes everything; what cannot be written is lost.
struct Lossy<W>(W);

impl<W: Write> Write for Lossy<W> {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        let _lost = self.0.write_all(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let _lost = self.0.flush();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_written_is_lost() {
        let mut room = [0; 4];
        let mut full = Lossy(&mut room[..]);
        for line in ["one", "two", "three"] {
            full.write_all(line.as_bytes()).unwrap();
            full.flush().unwrap();
        }
        assert_eq!(&room, b"onet");
    }
}
