//! ipvsadm 1.31, as far as anybody can tell who types it: its parser, its messages, its exit statuses, its listings, byte for
//! byte. What it says to the kernel's IPVS, this says to the director of its network namespace.
//!
//! Additions to it: `--json` on listings, and full NAT as the patch that brought it to IPVS had it (`-b` with real servers, `-P`,
//! `-Q`, `-G`, `-z`).

mod address;
#[cfg(test)]
mod fixed_point;
mod json;
mod listing;
mod names;
mod options;
mod parse;
mod save;
mod sort;
mod words;

use names::Names;
use parse::{Command, Complaint, Listed, Listing, parse};
use std::ffi::OsString;
use std::io::{BufRead, Write};
use uvs_control::api::{Refusal, Request, Response, ServiceId};
use uvs_control::client::{self, Client, ClientError};

/// The version that IPVS has said it is since 2003.
pub(crate) const IPVS_VERSION: &str = "1.2.1";

const VERSION: &str = "ipvsadm v1.31 2019/12/24 (compiled with popt and IPVS v1.2.1)";
const HELP: &str = include_str!("help.txt");

/// Requests of a restore that are sent as one batch, at most.
const BATCH: usize = 10_000;

/// Where a run of ipvsadm reads and writes.
pub struct Console<'a> {
    /// Standard input, for `-R`.
    pub input: &'a mut dyn BufRead,
    /// Standard output.
    pub output: &'a mut dyn Write,
    /// Standard error.
    pub errors: &'a mut dyn Write,
}

/// Runs one command line, the program's name not in it; the exit status.
pub fn run(arguments: &[OsString], client: &Client, console: &mut Console<'_>) -> u8 {
    let words: Vec<String> = arguments.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let mut session = Session { client, console, waiting: Vec::new() };
    let status = match session.line(&words) {
        Ok(status) => status,
        Err(End { text, status }) => {
            session.complain(&text);
            status
        }
    };
    let _ = console.output.flush();
    status
}

/// What ends a run at once: the text for standard error and the exit status.
struct End {
    text: String,
    status: u8,
}

impl From<Complaint> for End {
    fn from(Complaint { text, status, .. }: Complaint) -> Self {
        End { text, status }
    }
}

impl From<ClientError> for End {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Refused(refusal) => End { text: refusal.to_string(), status: 255 },
            unreachable => End { text: format!("Can't initialize ipvs: {unreachable}"), status: 2 },
        }
    }
}

/// What a command amounts to.
enum Deed {
    /// Something to ask of the director.
    Ask(Request),
    /// Something to show.
    Show(Listing),
    Save {
        numeric: bool,
    },
    Locals {
        service: Option<ServiceId>,
        numeric: bool,
    },
    Restore,
    Help,
    Version,
}

impl From<Command> for Deed {
    fn from(command: Command) -> Self {
        Deed::Ask(match command {
            Command::Add(service) => Request::AddService(service),
            Command::Edit(service) => Request::EditService(service),
            Command::Delete(service) => Request::DeleteService(service),
            Command::Flush => Request::Flush,
            Command::AddServer(service, server) => Request::AddServer { service, server },
            Command::EditServer(service, server) => Request::EditServer { service, server },
            Command::DeleteServer(service, server) => Request::DeleteServer { service, server },
            Command::AddLocal(service, address) => Request::AddLocal { service, address },
            Command::DeleteLocal(service, address) => Request::DeleteLocal { service, address },
            Command::ListLocals { service, numeric } => return Deed::Locals { service, numeric },
            Command::Zero(service) => Request::Zero(service),
            Command::Set(timeouts) => Request::SetTimeouts(timeouts),
            Command::StartDaemon(daemon) => Request::StartDaemon(daemon),
            Command::StopDaemon(state) => Request::StopDaemon { state },
            Command::List(listing) => return Deed::Show(listing),
            Command::Save { numeric } => return Deed::Save { numeric },
            Command::Restore => return Deed::Restore,
            Command::Help => return Deed::Help,
            Command::Version => return Deed::Version,
        })
    }
}

struct Session<'a, 'b> {
    client: &'a Client,
    console: &'a mut Console<'b>,
    /// Requests of a restore not yet sent.
    waiting: Vec<Request>,
}

impl Session<'_, '_> {
    /// One command line.
    fn line(&mut self, words: &[String]) -> Result<u8, End> {
        let command = if words.is_empty() { Ok(Command::List(Listing::ALL_BY_NAME)) } else { parse(words) };
        if !matches!(command, Ok(Command::Help | Command::Version)) {
            self.client.reach()?;
        }
        match command?.into() {
            Deed::Restore => self.restore(),
            Deed::Ask(request) => match self.client.ask(&request)? {
                Response::Done => Ok(0),
                other => Err(self.client.unexpected(other).into()),
            },
            deed => self.show(deed),
        }
    }

    /// Everything that prints.
    fn show(&mut self, deed: Deed) -> Result<u8, End> {
        match deed {
            Deed::Show(listing) => self.list(&listing)?,
            Deed::Locals { service, numeric } => {
                let mut found = self.services(service)?.services;
                sort::sort(&mut found);
                self.print(&listing::locals(&found, numeric));
            }
            Deed::Save { numeric } => {
                let mut all = self.client.services(None)?.services;
                sort::sort(&mut all);
                self.print(&save::save(&all, numeric));
            }
            Deed::Help => self.print(&format!("{VERSION}\n{HELP}")),
            Deed::Version => self.print(&format!("{VERSION}\n")),
            Deed::Ask(_) | Deed::Restore => {}
        }
        Ok(0)
    }

    fn list(&mut self, listing: &Listing) -> Result<(), End> {
        match listing.what {
            Listed::Services(service) => {
                let mut found = self.services(service)?;
                if listing.sorted {
                    sort::sort(&mut found.services);
                }
                let text = if listing.json {
                    json::services(&found.services)
                } else {
                    let title = service.is_none().then_some(found.table_size);
                    listing::services(listing, &found.services, title)
                };
                self.print(&text);
            }
            Listed::Connections => self.connections(listing)?,
            Listed::Timeouts => match self.client.ask(&Request::Timeouts)? {
                Response::Timeouts(timeouts) if listing.json => self.print(&json::timeouts(&timeouts)),
                Response::Timeouts(timeouts) => self.print(&listing::timeouts(&timeouts)),
                other => return Err(self.client.unexpected(other).into()),
            },
            Listed::Daemons => match self.client.ask(&Request::Daemons)? {
                Response::Daemons(daemons) if listing.json => self.print(&json::daemons(&daemons)),
                Response::Daemons(daemons) => {
                    daemons.iter().for_each(|daemon| self.print(&listing::daemon(daemon)));
                }
                other => return Err(self.client.unexpected(other).into()),
            },
        }
        Ok(())
    }

    fn services(&self, service: Option<ServiceId>) -> Result<client::Listing, End> {
        self.client.services(service).map_err(|error| match error {
            ClientError::Refused(refusal @ Refusal::NoSuchService) => {
                End { text: refusal.to_string(), status: 1 }
            }
            other => other.into(),
        })
    }

    fn connections(&mut self, listing: &Listing) -> Result<(), End> {
        let client = self.client;
        if listing.json {
            let mut all = Vec::new();
            client.connections(|entry| all.push(entry.clone()))?;
            self.print(&json::connections(&all));
            return Ok(());
        }
        let mut names = Names::new(listing.numeric);
        self.print(&listing::connections_heading(listing.persistent));
        client.connections(|entry| {
            self.print(&listing::connection(entry, listing.persistent, &mut names));
        })?;
        Ok(())
    }

    /// `-R`: each line a command line, as if typed one after the other. A command that makes no sense ends it all; words that are no
    /// options, and what the director refuses, are told and passed over, and the last line's outcome is the exit status.
    fn restore(&mut self) -> Result<u8, End> {
        let mut status = 0;
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = self
                .console
                .input
                .read_until(b'\n', &mut line)
                .map_err(|error| End { text: format!("cannot read standard input: {error}"), status: 2 })?;
            if read == 0 {
                return self.send_waiting(status);
            }
            let text = String::from_utf8_lossy(&line);
            // Its own name counts for nothing, wherever it stands.
            let words = text.split_ascii_whitespace().filter(|word| *word != "ipvsadm");
            let words: Vec<String> = words.map(str::to_owned).collect();
            if words.is_empty() {
                continue;
            }
            match parse(&words).map(Deed::from) {
                Ok(Deed::Ask(request)) => {
                    self.waiting.push(request);
                    if self.waiting.len() >= BATCH {
                        status = self.send_waiting(status)?;
                    }
                }
                Ok(deed @ (Deed::Help | Deed::Version)) => {
                    self.send_waiting(status)?;
                    return self.show(deed);
                }
                Ok(Deed::Restore) => {
                    self.send_waiting(status)?;
                    return Err(Complaint::try_help().into());
                }
                Ok(deed) => {
                    self.send_waiting(status)?;
                    status = self.show(deed)?;
                }
                Err(complaint) => {
                    self.send_waiting(status)?;
                    if !complaint.passes {
                        return Err(complaint.into());
                    }
                    self.complain(&complaint.text);
                    status = complaint.status;
                }
            }
        }
    }

    /// Sends what waits and tells the refusals; the status of the last answer, or `status` when nothing waited.
    fn send_waiting(&mut self, mut status: u8) -> Result<u8, End> {
        if self.waiting.is_empty() {
            return Ok(status);
        }
        let requests = std::mem::take(&mut self.waiting);
        match self.client.ask(&Request::Batch(requests))? {
            Response::Batch(answers) => {
                for answer in answers {
                    status = match answer {
                        Response::Refused(refusal) => {
                            self.complain(&refusal.to_string());
                            255
                        }
                        _ => 0,
                    };
                }
                Ok(status)
            }
            other => Err(self.client.unexpected(other).into()),
        }
    }

    fn print(&mut self, text: &str) {
        let _ = self.console.output.write_all(text.as_bytes());
    }

    fn complain(&mut self, text: &str) {
        let _ = self.console.output.flush();
        let _ = writeln!(self.console.errors, "{text}");
    }
}
