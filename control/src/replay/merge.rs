//! Several captures read as one, in the order of their frames' times.

use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};
use uvs_engine::capture::WAYS;
use uvs_engine::link::pcap::{Error, Interface, Reader, Record};

/// A capture that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{} {error}", path.display())]
pub struct InputError {
    /// Which.
    pub path: PathBuf,
    /// Why.
    pub error: Error,
}

/// A frame, and where it was captured.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// Of several captures, which.
    pub file: usize,
    /// The frame; its interface is the first of that capture's that is of its device.
    pub record: Record,
}

/// Captures being read.
#[derive(Debug)]
pub struct Merged {
    inputs: Vec<Input>,
}

#[derive(Debug)]
struct Input {
    path: PathBuf,
    reader: Reader<BufReader<File>>,
    next: Option<Record>,
    /// What was wrong at the end of a capture whose beginning is good.
    cut_short: Option<Error>,
}

impl Merged {
    /// Opens the captures.
    ///
    /// # Errors
    /// When one is none.
    pub fn open(paths: &[PathBuf]) -> Result<Self, InputError> {
        let open = |path: &PathBuf| {
            let file = regular(path).map_err(Error::from);
            let reader = file.and_then(|file| Reader::new(BufReader::new(file)));
            let reader = reader.map_err(|error| InputError { path: path.clone(), error })?;
            let mut input = Input { path: path.clone(), reader, next: None, cut_short: None };
            input.advance()?;
            Ok(input)
        };
        Ok(Merged { inputs: paths.iter().map(open).collect::<Result<_, _>>()? })
    }

    /// The name of an interface of a capture: the capture's own for it, or else the file's.
    pub fn name(&self, file: usize, interface: usize) -> String {
        let Some(input) = self.inputs.get(file) else { return String::new() };
        let named = input.reader.interfaces().get(interface).and_then(device);
        named.map_or_else(
            || input.path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
            ToOwned::to_owned,
        )
    }

    /// What is to be said of captures that end in the middle of a record.
    pub fn cut_short(&self) -> impl Iterator<Item = String> {
        self.inputs.iter().filter_map(|input| {
            input.cut_short.as_ref().map(|error| format!("{} {error}", input.path.display()))
        })
    }
}

/// Opens a file that can be read a second time from its beginning.
fn regular(path: &Path) -> io::Result<File> {
    // A pipe would wait for its writer if it were opened.
    let there = path.as_os_str() != "-";
    if there && std::fs::metadata(path)?.is_file() {
        return File::open(path);
    }
    Err(io::Error::other("it is no regular file, and captures are read twice: copy it to one"))
}

impl Input {
    fn advance(&mut self) -> Result<Option<Record>, InputError> {
        let next = match self.reader.next().transpose() {
            Ok(next) => next,
            Err(error @ Error::CutShort(_)) => {
                self.cut_short = Some(error);
                None
            }
            Err(error) => return Err(InputError { path: self.path.clone(), error }),
        };
        let next = next.map(|record| Record { interface: self.first_of(record.interface), ..record });
        Ok(std::mem::replace(&mut self.next, next))
    }
}

impl Input {
    /// The first interface that is of the same device.
    fn first_of(&self, interface: usize) -> usize {
        let interfaces = self.reader.interfaces();
        let Some(name) = interfaces.get(interface).and_then(device) else { return interface };
        interfaces.iter().position(|other| device(other) == Some(name)).unwrap_or(interface)
    }
}

/// The device that an interface is of: a director's own captures have one for each way of each device.
fn device(interface: &Interface) -> Option<&str> {
    let name = interface.name.as_deref()?;
    match name.rsplit_once(' ') {
        Some((device, way)) if WAYS.iter().any(|known| known.to_string() == way) => Some(device),
        _ => Some(name),
    }
}

impl Iterator for Merged {
    type Item = Result<Arrival, InputError>;

    /// The earliest of the next frames; of several at one time, that of the capture named first.
    fn next(&mut self) -> Option<Self::Item> {
        let times = self.inputs.iter().enumerate();
        let times = times.filter_map(|(file, input)| Some((input.next.as_ref()?.time, file)));
        let (_, file) = times.min()?;
        let advanced = self.inputs[file].advance().transpose()?;
        Some(advanced.map(|record| Arrival { file, record }))
    }
}
