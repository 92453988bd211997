//! Reading a command line as the popt library reads it: switches bundled behind one dash, values attached or following, words
//! that are neither kept for later.

use super::options::{SWITCHES, Switch, SwitchRow, Value, Verb};

/// One switch read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found<'a> {
    /// What it stands for.
    pub(super) switch: Switch,
    /// Its value.
    pub(super) value: Option<&'a str>,
    /// The word to name it by in a message: the value when that was a word of its own.
    pub(super) word: &'a str,
}

/// Reads switches from words.
#[derive(Debug)]
pub(super) struct Reader<'a> {
    words: &'a [String],
    /// What is left of a bundle of letters, and the word it is from.
    bundle: Option<(&'a str, &'a str)>,
    /// Words that are no switches and no values.
    pub(super) leftover: Vec<&'a str>,
    /// The command, once it was read.
    verb: Option<Verb>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(words: &'a [String]) -> Self {
        Reader { words, bundle: None, leftover: Vec::new(), verb: None }
    }

    /// The next switch, `None` after the last. The error is popt's message.
    pub(super) fn next(&mut self) -> Option<Result<Found<'a>, String>> {
        if let Some((rest, word)) = self.bundle.take() {
            return Some(self.letter(rest, word));
        }
        loop {
            let (word, others) = self.words.split_first()?;
            self.words = others;
            if word == "--" {
                self.leftover.extend(std::mem::take(&mut self.words).iter().map(String::as_str));
                return None;
            } else if let Some(name) = word.strip_prefix("--") {
                return Some(self.long(name, word));
            } else if let Some(rest) = word.strip_prefix('-').filter(|rest| !rest.is_empty()) {
                return Some(self.letter(rest, word));
            }
            self.leftover.push(word);
        }
    }

    fn long(&mut self, name: &'a str, word: &'a str) -> Result<Found<'a>, String> {
        let (name, attached) = match name.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (name, None),
        };
        let Some((_, _, value, switch)) = self.switch(|(_, long, _, _)| long == name) else {
            return Err(format!("{word}: unknown option"));
        };
        self.valued(switch, value, attached, word)
    }

    fn switch(&self, is_it: impl Fn(SwitchRow) -> bool) -> Option<SwitchRow> {
        let known = |row: &&SwitchRow| is_it(**row) && self.verb.is_none_or(|verb| verb.has(**row));
        SWITCHES.iter().find(known).copied()
    }

    fn letter(&mut self, rest: &'a str, word: &'a str) -> Result<Found<'a>, String> {
        let mut letters = rest.chars();
        let letter = letters.next();
        let rest = letters.as_str();
        let Some(row) = self.switch(|(short, ..)| short.is_some() && short == letter) else {
            return Err(format!("{word}: unknown option"));
        };
        let (value, switch) = self.verb.map_or((row.2, row.3), |verb| verb.meaning(row));
        let attached = match (value, rest) {
            (_, "") => None,
            (Value::None, _) if !rest.starts_with('=') => {
                self.bundle = Some((rest, word));
                None
            }
            _ => Some(rest.strip_prefix('=').unwrap_or(rest)),
        };
        self.valued(switch, value, attached, word)
    }

    fn valued(
        &mut self,
        switch: Switch,
        value: Value,
        attached: Option<&'a str>,
        word: &'a str,
    ) -> Result<Found<'a>, String> {
        if let Switch::Verb(verb) = switch {
            self.verb.get_or_insert(verb);
        }
        match (value, attached) {
            (Value::None, Some(_)) => Err(format!("{word}: option does not take an argument")),
            (Value::None, None) => Ok(Found { switch, value: None, word }),
            (_, Some(value)) => Ok(Found { switch, value: Some(value), word }),
            (Value::Needed, None) => {
                let value = self.word().ok_or_else(|| format!("{word}: missing argument"))?;
                Ok(Found { switch, value: Some(value), word: value })
            }
            (Value::Optional, None) => {
                let follows = self.words.first().is_some_and(|next| !next.starts_with('-'));
                let value = if follows { self.word() } else { None };
                Ok(Found { switch, value, word })
            }
        }
    }

    fn word(&mut self) -> Option<&'a str> {
        let (word, others) = self.words.split_first()?;
        self.words = others;
        Some(word)
    }
}
