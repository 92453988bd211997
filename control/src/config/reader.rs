//! Reading TOML so that every fault is found, and told with its place, what was found and what was expected.

use std::cell::RefCell;
use std::fmt;
use std::ops::{Range, RangeInclusive};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// One thing wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fault {
    /// Its line, from 1.
    pub line: usize,
    /// Its column in characters, from 1.
    pub column: usize,
    /// What was found and what was expected.
    pub message: String,
}

/// Everything wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Faults {
    /// The file's name.
    pub file: String,
    /// In the order of the file; at least one.
    pub faults: Vec<Fault>,
}

impl fmt::Display for Faults {
    /// One line for each, as compilers write them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.faults.iter().try_for_each(|Fault { line, column, message }| {
            writeln!(f, "{}:{line}:{column}: {message}", self.file)
        })
    }
}

/// A file being read.
#[derive(Debug)]
pub(super) struct Reader<'i> {
    text: &'i str,
    /// Where its lines begin.
    lines: Vec<usize>,
    faults: RefCell<Vec<Fault>>,
}

impl<'i> Reader<'i> {
    pub(super) fn new(text: &'i str) -> Self {
        let after_breaks = text.match_indices('\n').map(|(end, _)| end + 1);
        let lines = std::iter::once(0).chain(after_breaks).collect();
        Reader { text, lines, faults: RefCell::default() }
    }

    /// The whole file as a table; faults of its syntax are noted.
    pub(super) fn parse(&self) -> Spanned<DeTable<'i>> {
        let (table, errors) = DeTable::parse_recoverable(self.text);
        for error in errors {
            let span = error.span().unwrap_or(0..0);
            let found = match self.text.get(span.clone()).and_then(|text| text.lines().next()) {
                Some(text) if !text.is_empty() => format!("found `{text}`: "),
                _ => String::new(),
            };
            self.fault(span, format!("{found}{}", error.message()));
        }
        table
    }

    /// Notes a fault.
    pub(super) fn fault(&self, at: Range<usize>, message: impl Into<String>) {
        let (line, column) = self.place(at.start);
        self.faults.borrow_mut().push(Fault { line, column, message: message.into() });
    }

    /// Notes that something else was expected.
    pub(super) fn expected(&self, at: Range<usize>, found: impl fmt::Display, expected: impl fmt::Display) {
        self.fault(at, format!("found {found}, expected {expected}"));
    }

    /// The line of a place in the file.
    pub(super) fn line(&self, at: &Range<usize>) -> usize {
        self.place(at.start).0
    }

    /// Whether nothing is wrong so far.
    pub(super) fn is_clean(&self) -> bool {
        self.faults.borrow().is_empty()
    }

    /// All that is wrong, in the order of the file.
    pub(super) fn into_faults(self) -> Vec<Fault> {
        let mut faults = self.faults.into_inner();
        faults.sort();
        faults
    }

    fn place(&self, at: usize) -> (usize, usize) {
        let line = self.lines.partition_point(|start| *start <= at);
        let before = self.lines.get(line.saturating_sub(1)).and_then(|start| self.text.get(*start..at));
        (line, before.map_or(0, |text| text.chars().count()) + 1)
    }
}

/// A table of the file, whose keys are asked for one by one; those nobody asks for are unknown.
#[derive(Debug)]
pub(super) struct Section<'r, 'i> {
    reader: &'r Reader<'i>,
    table: &'r DeTable<'i>,
    /// Where it begins.
    pub(super) at: Range<usize>,
    known: RefCell<Vec<&'static str>>,
}

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Found<T> {
    pub(super) value: T,
    pub(super) at: Range<usize>,
}

impl<'r, 'i> Section<'r, 'i> {
    pub(super) fn new(reader: &'r Reader<'i>, table: &'r DeTable<'i>, at: Range<usize>) -> Self {
        Section { reader, table, at, known: RefCell::default() }
    }

    fn get(&self, key: &'static str) -> Option<&'r Spanned<DeValue<'i>>> {
        self.known.borrow_mut().push(key);
        self.table.iter().find(|(found, _)| found.get_ref() == key).map(|(_, value)| value)
    }

    /// Notes that a value is of the wrong kind.
    fn wrong<T>(&self, value: &Spanned<DeValue<'i>>, expected: impl fmt::Display) -> Option<T> {
        self.reader.expected(value.span(), describe(value.get_ref()), expected);
        None
    }

    /// A text.
    pub(super) fn text(&self, key: &'static str, expected: &str) -> Option<Found<&'r str>> {
        let value = self.get(key)?;
        match value.get_ref().as_str() {
            Some(text) => Some(Found { value: text, at: value.span() }),
            None => self.wrong(value, expected),
        }
    }

    /// A text without which the table means nothing.
    pub(super) fn required_text(&self, key: &'static str, expected: &str) -> Option<Found<&'r str>> {
        if !self.table.iter().any(|(found, _)| found.get_ref() == key) {
            self.reader.fault(self.at.clone(), format!("found no `{key}`, expected {expected}"));
        }
        self.text(key, expected)
    }

    /// Where the value of a key stands.
    pub(super) fn place(&self, key: &'static str) -> Option<Range<usize>> {
        self.get(key).map(Spanned::span)
    }

    /// One of several words.
    pub(super) fn one_of<T: Copy>(&self, key: &'static str, words: &[(&str, T)]) -> Option<T> {
        let names: Vec<_> = words.iter().map(|(word, _)| *word).collect();
        let expected = alternatives(&names);
        let found = self.text(key, &expected)?;
        match words.iter().find(|(word, _)| *word == found.value) {
            Some((_, meaning)) => Some(*meaning),
            None => {
                let hint = did_you_mean(found.value, &names);
                self.reader.expected(found.at, format!("`{}`", found.value), format!("{expected}{hint}"));
                None
            }
        }
    }

    /// A whole number within bounds.
    pub(super) fn number(&self, key: &'static str, bounds: RangeInclusive<u32>) -> Option<Found<u32>> {
        let value = self.get(key)?;
        match whole(value.get_ref()).filter(|number| bounds.contains(number)) {
            Some(number) => Some(Found { value: number, at: value.span() }),
            None => self.wrong(value, format!("a whole number from {} to {}", bounds.start(), bounds.end())),
        }
    }

    /// A whole number, maybe a negative one.
    pub(super) fn integer(&self, key: &'static str) -> Option<Found<i32>> {
        let value = self.get(key)?;
        let read = value.get_ref().as_integer().and_then(|number| {
            i32::from_str_radix(number.as_str().trim_start_matches('+'), number.radix()).ok()
        });
        match read {
            Some(number) => Some(Found { value: number, at: value.span() }),
            None => self.wrong(value, format!("a whole number from {} to {}", i32::MIN, i32::MAX)),
        }
    }

    /// `true` or `false`.
    pub(super) fn boolean(&self, key: &'static str) -> Option<Found<bool>> {
        let value = self.get(key)?;
        match value.get_ref().as_bool() {
            Some(boolean) => Some(Found { value: boolean, at: value.span() }),
            None => self.wrong(value, "true or false"),
        }
    }

    /// A list of texts.
    pub(super) fn texts(&self, key: &'static str, expected: &str) -> Option<Found<Vec<Found<&'r str>>>> {
        let value = self.get(key)?;
        let Some(array) = value.get_ref().as_array() else { return self.wrong(value, expected) };
        let texts = array.iter().filter_map(|item| match item.get_ref().as_str() {
            Some(text) => Some(Found { value: text, at: item.span() }),
            None => self.wrong(item, expected),
        });
        Some(Found { value: texts.collect(), at: value.span() })
    }

    /// A list of whole numbers.
    pub(super) fn numbers(&self, key: &'static str, most: u32) -> Option<Found<Vec<Found<u32>>>> {
        let value = self.get(key)?;
        let expected = format!("a list of whole numbers from 0 to {most}");
        let Some(array) = value.get_ref().as_array() else { return self.wrong(value, expected) };
        let numbers =
            array.iter().filter_map(|item| match whole(item.get_ref()).filter(|number| *number <= most) {
                Some(number) => Some(Found { value: number, at: item.span() }),
                None => self.wrong(item, &expected),
            });
        Some(Found { value: numbers.collect(), at: value.span() })
    }

    /// A table of its own.
    pub(super) fn table(&self, key: &'static str) -> Option<Section<'r, 'i>> {
        let value = self.get(key)?;
        match value.get_ref().as_table() {
            Some(table) => Some(Section::new(self.reader, table, value.span())),
            None => self.wrong(value, format!("a table, written [{key}]")),
        }
    }

    /// Tables of their own, written with double brackets.
    pub(super) fn tables(&self, key: &'static str, written: &str) -> Vec<Section<'r, 'i>> {
        let Some(value) = self.get(key) else { return Vec::new() };
        let expected = format!("tables, each written [[{written}]]");
        let Some(array) = value.get_ref().as_array() else {
            return self.wrong(value, expected).unwrap_or_default();
        };
        let tables = array.iter().filter_map(|item| match item.get_ref().as_table() {
            Some(table) => Some(Section::new(self.reader, table, item.span())),
            None => self.wrong(item, &expected),
        });
        tables.collect()
    }

    /// Notes the keys that nobody asked for.
    pub(super) fn finish(self) {
        let known = self.known.into_inner();
        for (key, _) in self.table.iter().filter(|(key, _)| !known.contains(&&**key.get_ref())) {
            let hint = match did_you_mean(key.get_ref(), &known) {
                hint if hint.is_empty() => format!("one of: {}", known.join(", ")),
                hint => format!("a known key{hint}"),
            };
            self.reader.expected(key.span(), format!("the unknown key `{}`", key.get_ref()), hint);
        }
    }
}

fn whole(value: &DeValue<'_>) -> Option<u32> {
    let number = value.as_integer()?;
    u32::from_str_radix(number.as_str().trim_start_matches('+'), number.radix()).ok()
}

fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("the text \"{text}\""),
        DeValue::Integer(number) => format!("the number {}", number.as_str()),
        DeValue::Float(number) => format!("the number {}", number.as_str()),
        DeValue::Boolean(boolean) => boolean.to_string(),
        DeValue::Datetime(time) => format!("the date {time}"),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

/// Words as a person lists them: `a`, `b` or `c`.
pub(super) fn alternatives(words: &[&str]) -> String {
    let quoted: Vec<_> = words.iter().map(|word| format!("`{word}`")).collect();
    match quoted.split_last() {
        Some((last, first)) if !first.is_empty() => format!("{} or {last}", first.join(", ")),
        _ => quoted.concat(),
    }
}

/// `: did you mean …?` when one of the words is near, otherwise nothing.
pub(super) fn did_you_mean(found: &str, words: &[&str]) -> String {
    let near = words.iter().map(|word| (distance(found, word), word)).min();
    match near {
        Some((distance, word)) if distance <= 1 + found.chars().count() / 3 => {
            format!(": did you mean `{word}`?")
        }
        _ => String::new(),
    }
}

/// How many letters must be put in, left out or changed to make one word of the other.
fn distance(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.chars().count()).collect();
    for (line, letter) in one.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = line + 1;
        for (column, against) in other.chars().enumerate() {
            let changed = diagonal + usize::from(letter != against);
            diagonal = row[column + 1];
            row[column + 1] = changed.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn places_are_lines_and_columns() {
        let reader = Reader::new("ab\n\nä=ü\n");
        for (at, expected) in [(0, (1, 1)), (2, (1, 3)), (3, (2, 1)), (4, (3, 1)), (7, (3, 3)), (10, (4, 1))]
        {
            assert_eq!(reader.place(at), expected, "byte {at}");
        }
        assert_eq!(Reader::new("").place(0), (1, 1));
        assert_eq!(Reader::new("a").place(7).0, 1, "beyond the end");
    }

    /// Every service and real server of a file is asked for its line. Counting the lines before it took minutes here.
    #[test]
    fn a_line_is_found_in_no_time_in_a_long_file() {
        let text = "key = 1\n".repeat(1_000_000);
        let reader = Reader::new(&text);
        let begin = Instant::now();
        assert!((0..1_000_000).step_by(10).all(|line| reader.line(&(line * 8 + 3..0)) == line + 1));
        assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    }
}
