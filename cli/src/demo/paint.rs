//! Colour, where there is a terminal to show it.

use std::io::IsTerminal;

/// Colours text by ANSI sequences, or leaves it as it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Paint {
    colour: bool,
}

impl Paint {
    /// For stdout: colour on a terminal, unless `NO_COLOR` (no-color.org) asks for none.
    pub(super) fn for_stdout() -> Self {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Paint { colour: std::io::stdout().is_terminal() && !unwanted }
    }

    /// Never any colour.
    #[cfg(test)]
    pub(super) fn plain() -> Self {
        Paint { colour: false }
    }

    pub(super) fn bold(self, text: &str) -> String {
        self.sequence("1", text)
    }

    pub(super) fn dim(self, text: &str) -> String {
        self.sequence("2", text)
    }

    pub(super) fn good(self, text: &str) -> String {
        self.sequence("1;32", text)
    }

    pub(super) fn bad(self, text: &str) -> String {
        self.sequence("1;31", text)
    }

    /// One of four colours that tell hosts apart.
    pub(super) fn host(self, number: usize, text: &str) -> String {
        self.sequence(["36", "33", "32", "35"][number % 4], text)
    }

    fn sequence(self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.into() }
    }
}
