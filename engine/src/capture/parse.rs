//! Filters as people write them.

use super::filter::{Filter, Node, Side, Test, prefix};
use std::fmt;
use std::net::IpAddr;
use std::ops::Range;

/// The longest filter, in bytes.
pub const MAX_LENGTH: usize = 4096;

/// Parentheses within parentheses.
const MAX_DEPTH: usize = 32;

/// A filter that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilterError {
    text: String,
    /// The wrong word's place, in bytes.
    at: Range<usize>,
    what: String,
}

impl std::error::Error for FilterError {}

impl fmt::Display for FilterError {
    /// What is wrong, the filter, and marks under the wrong word.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let FilterError { text, at, what } = self;
        let columns = |to: usize| {
            text.get(..to.min(text.len())).map_or(0, |before| before.chars().count())
                + to.saturating_sub(text.len())
        };
        // A line break would have the marks point at nothing.
        let line: String =
            text.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect();
        let (before, behind) = (columns(at.start), columns(at.end));
        let under = behind.saturating_sub(before).max(1);
        write!(f, "{what}\n  {line}\n  {}{}", " ".repeat(before), "^".repeat(under))
    }
}

/// What kind of thing a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Host,
    Net,
    Port,
    PortRange,
}

/// What was said before a value.
#[derive(Clone, Debug)]
struct Qualifiers {
    protocol: Option<Test>,
    side: Side,
    kind: Kind,
}

/// Words of a filter being read.
struct Parser<'a> {
    text: &'a str,
    words: Vec<Range<usize>>,
    next: usize,
    depth: usize,
    /// Those of the value before: `port 80 or 443` asks for two ports.
    last: Option<Qualifiers>,
}

pub(super) fn filter(text: &str) -> Result<Filter, FilterError> {
    if text.len() > MAX_LENGTH {
        let what = format!("the filter is {} bytes long, and {MAX_LENGTH} are the limit", text.len());
        return Err(FilterError { text: String::new(), at: 0..0, what });
    }
    let mut parser = Parser { text, words: words(text), next: 0, depth: 0, last: None };
    if parser.words.is_empty() {
        return Ok(Filter::default());
    }
    let node = parser.any()?;
    match parser.peek() {
        None => Ok(Filter(Some(node))),
        Some(")") => Err(parser.wrong("`)` closes nothing")),
        Some(word) => Err(parser.wrong(format!("`and`, `or` or the end should come here, not `{word}`"))),
    }
}

/// The places of words, of which parentheses and the signs for `and`, `or` and `not` are some, blanks around them or not.
fn words(text: &str) -> Vec<Range<usize>> {
    let mut words: Vec<Range<usize>> = Vec::new();
    // Whether the last word goes on.
    let mut open = false;
    for (at, letter) in text.char_indices() {
        let end = at + letter.len_utf8();
        let sign = matches!(letter, '(' | ')' | '!' | '&' | '|');
        match words.last_mut() {
            Some(last) if open && !sign && !letter.is_whitespace() => last.end = end,
            // The second half of `&&` or `||`.
            Some(last) if matches!(letter, '&' | '|') && text[last.start..at] == text[at..end] => {
                last.end = end;
            }
            _ if !letter.is_whitespace() => words.push(at..end),
            _ => {}
        }
        open = !sign && !letter.is_whitespace();
    }
    words
}

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<&'a str> {
        self.words.get(self.next).map(|word| &self.text[word.clone()])
    }

    /// Takes the next word if it is one of these.
    fn accept(&mut self, wanted: &[&str]) -> bool {
        let is = self.peek().is_some_and(|word| wanted.contains(&word));
        self.next += usize::from(is);
        is
    }

    /// The error about the next word, or about the end.
    fn wrong(&self, what: impl Into<String>) -> FilterError {
        let end = self.text.trim_end().len();
        let at = self.words.get(self.next).cloned().unwrap_or(end + 1..end + 2);
        FilterError { text: self.text.into(), at, what: what.into() }
    }

    fn any(&mut self) -> Result<Node, FilterError> {
        let mut nodes = vec![self.all()?];
        while self.accept(&["or", "||"]) {
            nodes.push(self.all()?);
        }
        Ok(joined(nodes, Node::Any))
    }

    fn all(&mut self) -> Result<Node, FilterError> {
        let mut nodes = vec![self.one()?];
        while self.accept(&["and", "&&"]) {
            nodes.push(self.one()?);
        }
        Ok(joined(nodes, Node::All))
    }

    fn one(&mut self) -> Result<Node, FilterError> {
        let mut negated = false;
        while self.accept(&["not", "!"]) {
            negated = !negated;
        }
        let node = if self.peek() == Some("(") { self.parentheses()? } else { self.primitive()? };
        Ok(if negated { Node::Not(Box::new(node)) } else { node })
    }

    fn parentheses(&mut self) -> Result<Node, FilterError> {
        if self.depth == MAX_DEPTH {
            return Err(self.wrong(format!("more than {MAX_DEPTH} parentheses within each other")));
        }
        let opening = self.next;
        self.next += 1;
        self.depth += 1;
        let node = self.any()?;
        self.depth -= 1;
        if self.accept(&[")"]) {
            return Ok(node);
        }
        if self.peek().is_none() {
            self.next = opening;
            return Err(self.wrong("this parenthesis is not closed"));
        }
        Err(self.wrong("`and`, `or` or `)` should come here"))
    }

    /// One condition.
    fn primitive(&mut self) -> Result<Node, FilterError> {
        if self.accept(&["drop"]) {
            return Ok(Node::Is(Test::Dropped));
        }
        let protocol = self.peek().and_then(Test::of_protocol);
        self.next += usize::from(protocol.is_some());
        let side = match self.peek() {
            Some("src") => Side::Source,
            Some("dst") => Side::Destination,
            _ => Side::Either,
        };
        self.next += usize::from(side != Side::Either);
        let kind = match self.peek() {
            Some("host") => Some(Kind::Host),
            Some("net") => Some(Kind::Net),
            Some("port") => Some(Kind::Port),
            Some("portrange") => Some(Kind::PortRange),
            _ => None,
        };
        self.next += usize::from(kind.is_some());
        let qualifiers = match (protocol, side, kind) {
            (Some(protocol), Side::Either, None) => return Ok(Node::Is(protocol)),
            (None, Side::Either, None) => self.repeated()?,
            (protocol, side, kind) => Qualifiers { protocol, side, kind: kind.unwrap_or(Kind::Host) },
        };
        let test = Node::Is(self.value(&qualifiers)?);
        self.last = Some(qualifiers.clone());
        Ok(joined(qualifiers.protocol.map(Node::Is).into_iter().chain([test]).collect(), Node::All))
    }

    /// What a value alone is: what the one before was, or else a host or network.
    fn repeated(&self) -> Result<Qualifiers, FilterError> {
        const WORDS: &str = "host, net, port, portrange, src, dst, tcp, udp, icmp, icmp6, ip, ip6 or drop";
        match self.peek() {
            None | Some(")" | "and" | "&&" | "or" | "||") => {
                Err(self.wrong(format!("a condition is missing here: {WORDS}")))
            }
            Some(word) => {
                let first = word.split('/').next().unwrap_or(word);
                let address = first.parse::<IpAddr>().is_ok();
                let number = word.starts_with(|letter: char| letter.is_ascii_digit());
                match &self.last {
                    Some(last) if address || number => Ok(last.clone()),
                    _ if address => {
                        let kind = if word.contains('/') { Kind::Net } else { Kind::Host };
                        Ok(Qualifiers { protocol: None, side: Side::Either, kind })
                    }
                    _ => Err(self.wrong(format!("`{word}` is no condition: it would be {WORDS}"))),
                }
            }
        }
    }

    fn value(&mut self, qualifiers: &Qualifiers) -> Result<Test, FilterError> {
        let (side, kind) = (qualifiers.side, qualifiers.kind);
        let Some(word) = self.peek().filter(|word| !matches!(*word, "(" | ")" | "!")) else {
            let what = match kind {
                Kind::Host => "an address",
                Kind::Net => "a network, such as 192.0.2.0/24,",
                Kind::Port => "a port",
                Kind::PortRange => "two ports, such as 8000-8080,",
            };
            return Err(self.wrong(format!("{what} is missing here")));
        };
        let test = match kind {
            Kind::Host => host(word).map(|(address, length)| Test::Net(side, address, length)),
            Kind::Net => net(word).map(|(address, length)| Test::Net(side, address, length)),
            Kind::Port => port(word).map(|port| Test::Ports(side, port..=port)),
            Kind::PortRange => port_range(word).map(|(from, to)| Test::Ports(side, from..=to)),
        };
        let test = test.map_err(|what| self.wrong(what))?;
        self.next += 1;
        Ok(test)
    }
}

/// One node is itself.
fn joined(mut nodes: Vec<Node>, join: fn(Vec<Node>) -> Node) -> Node {
    match nodes.pop() {
        Some(only) if nodes.is_empty() => only,
        last => {
            nodes.extend(last);
            join(nodes)
        }
    }
}

fn full_length(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn host(word: &str) -> Result<(IpAddr, u8), String> {
    match word.parse::<IpAddr>() {
        Ok(address) => Ok((address, full_length(address))),
        Err(_) if net(word).is_ok() => Err(format!("`{word}` is a network: write `net {word}`")),
        Err(_) => Err(format!("`{word}` is no address; names are not looked up")),
    }
}

fn net(word: &str) -> Result<(IpAddr, u8), String> {
    let wrong = || format!("`{word}` is no network, such as 192.0.2.0/24 or 2001:db8::/32");
    let (address, length) =
        word.split_once('/').map_or((word, None), |(address, length)| (address, Some(length)));
    let address: IpAddr = address.parse().map_err(|_| wrong())?;
    let length = match length {
        None => full_length(address),
        Some(length) => length.parse().map_err(|_| wrong())?,
    };
    match prefix(address, length) {
        None => Err(format!("`{word}` has a prefix longer than {} bits", full_length(address))),
        Some(network) if network != address => {
            Err(format!("`{word}` has bits beyond its prefix: the network is {network}/{length}"))
        }
        Some(network) => Ok((network, length)),
    }
}

fn port(word: &str) -> Result<u16, String> {
    // `parse` would take a plus sign.
    let digits = word.bytes().all(|byte| byte.is_ascii_digit());
    let number = if digits { word.parse().ok() } else { None };
    number.ok_or_else(|| format!("`{word}` is no port (0 to 65535)"))
}

fn port_range(word: &str) -> Result<(u16, u16), String> {
    let (from, to) =
        word.split_once('-').ok_or_else(|| format!("`{word}` is no range of ports, such as 8000-8080"))?;
    let (from, to) = (port(from)?, port(to)?);
    if from <= to { Ok((from, to)) } else { Err(format!("`{word}` ends before it begins")) }
}
