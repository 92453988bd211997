//! What was changed on this host, and what there was before: one file for each virtual address and network namespace.

use super::process::Process;
use super::{Encapsulation, Error, Method};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use uvs_engine::link::namespace;

/// Where the journals are. It is empty after a reboot, as is what they tell of.
const DIRECTORY: &str = "/run/uvs/real-server";

/// What was done for one virtual address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Journal {
    pub(super) vip: IpAddr,
    pub(super) method: Method,
    /// In the order in which they were made.
    pub(super) steps: Vec<Step>,
}

/// One change, written down before it is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Step {
    /// A kernel setting, named with slashes, got another value.
    Sysctl { key: String, old: String, new: String },
    /// A device got an address with a host's prefix.
    Address { device: String, address: IpAddr },
    /// A device was taken up.
    Up { device: String },
    /// A decapsulator was started.
    Decapsulator { kind: Encapsulation, process: Option<Process> },
}

impl Step {
    /// Whether both change the same thing.
    pub(super) fn concerns_the_same(&self, other: &Step) -> bool {
        match (self, other) {
            (Step::Sysctl { key, .. }, Step::Sysctl { key: other, .. }) => key == other,
            (Step::Address { .. }, Step::Address { .. }) | (Step::Up { .. }, Step::Up { .. }) => {
                self == other
            }
            (Step::Decapsulator { kind, .. }, Step::Decapsulator { kind: other, .. }) => kind == other,
            _ => false,
        }
    }
}

impl Journal {
    /// Adds a step, unless there is one about the same thing: that one knows what there was first.
    pub(super) fn add(&mut self, step: Step) {
        if !self.steps.iter().any(|own| own.concerns_the_same(&step)) {
            self.steps.push(step);
        }
    }
}

/// The running decapsulator of a kind, whoever started it.
pub(super) fn decapsulator(journals: &[Journal], kind: Encapsulation) -> Option<Process> {
    let steps = journals.iter().flat_map(|journal| &journal.steps);
    let processes = steps.filter_map(|step| match step {
        Step::Decapsulator { kind: own, process: Some(process) } if *own == kind => Some(*process),
        _ => None,
    });
    processes.into_iter().find(Process::is_running)
}

/// The journals of this network namespace; one command at a time is at any.
#[derive(Debug)]
pub(super) struct Journals {
    place: Place,
    _lock: File,
}

/// Where the journals of a network namespace are.
#[derive(Clone, Debug)]
pub(super) struct Place {
    directory: PathBuf,
    /// What their names begin with.
    prefix: String,
}

impl Place {
    /// That of the calling process.
    pub(super) fn here() -> Result<Self, Error> {
        let cookie = namespace::cookie().map_err(Error::os("tell this network namespace from others"))?;
        Ok(Place { directory: DIRECTORY.into(), prefix: format!("{cookie}-") })
    }

    /// The directory, whose modification time tells of journals that come and go.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    fn file(&self, vip: IpAddr) -> PathBuf {
        self.directory.join(format!("{}{vip}.json", self.prefix))
    }

    /// Every journal, in the order of their names.
    pub(super) fn all(&self) -> Result<Vec<Journal>, Error> {
        self.files(&self.prefix, ".json")?.iter().filter_map(|file| read(file).transpose()).collect()
    }

    /// The files whose names begin and end so, in order.
    fn files(&self, begin: &str, end: &str) -> Result<Vec<PathBuf>, Error> {
        let unreadable = || Error::os(format!("read {}", self.directory.display()));
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(unreadable())? {
            let name = entry.map_err(unreadable())?.file_name();
            if name.to_str().is_some_and(|name| name.starts_with(begin) && name.ends_with(end)) {
                files.push(self.directory.join(name));
            }
        }
        files.sort();
        Ok(files)
    }
}

impl Journals {
    /// Waits until no other command is at it.
    pub(super) fn open() -> Result<Self, Error> {
        let place = Place::here()?;
        fs::create_dir_all(&place.directory)
            .map_err(Error::os(format!("make {}", place.directory.display())))?;
        let doing = || Error::os(format!("lock {}", place.directory.display()));
        let lock = File::open(&place.directory).map_err(doing())?;
        lock.lock().map_err(doing())?;
        // What a command that was killed had begun to write.
        for draft in place.files("", ".draft")? {
            fs::remove_file(&draft).map_err(Error::os(format!("delete {}", draft.display())))?;
        }
        Ok(Journals { place, _lock: lock })
    }

    /// Every journal, in the order of their names.
    pub(super) fn all(&self) -> Result<Vec<Journal>, Error> {
        self.place.all()
    }

    /// The journal of a virtual address.
    pub(super) fn load(&self, vip: IpAddr) -> Result<Option<Journal>, Error> {
        read(&self.place.file(vip))
    }

    /// Writes a journal; it is on the disk, or the old one is, whatever happens.
    pub(super) fn save(&self, journal: &Journal) -> Result<(), Error> {
        let path = self.place.file(journal.vip);
        let doing = || Error::os(format!("write {}", path.display()));
        let text = serde_json::to_string_pretty(journal).map_err(|error| doing()(error.into()))?;
        let draft = path.with_extension("draft");
        let mut file = File::create(&draft).map_err(doing())?;
        file.write_all(text.as_bytes()).map_err(doing())?;
        file.sync_all().map_err(doing())?;
        fs::rename(&draft, &path).map_err(doing())?;
        File::open(&self.place.directory).and_then(|directory| directory.sync_all()).map_err(doing())
    }

    /// Forgets a virtual address.
    pub(super) fn remove(&self, vip: IpAddr) -> Result<(), Error> {
        let path = self.place.file(vip);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(Error::os(format!("delete {}", path.display()))(error))
            }
            _ => Ok(()),
        }
    }
}

fn read(path: &Path) -> Result<Option<Journal>, Error> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| Error::Damaged { path: path.display().to_string(), reason: error.to_string() }),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::os(format!("read {}", path.display()))(error)),
    }
}
