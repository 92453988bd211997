//! Several captures read as one, in the order of their frames' times.

use std::fs::File;
use std::io::BufReader;
use std::path::PathBuf;
use uvs_engine::link::pcap::{Error, Reader, Record};

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
    /// The frame; its interface is one of that capture's.
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
            let file = File::open(path).map_err(Error::from);
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
        let named = input.reader.interfaces().get(interface).and_then(|interface| interface.name.clone());
        named.unwrap_or_else(|| input.path.file_stem().unwrap_or_default().to_string_lossy().into_owned())
    }

    /// What is to be said of captures that end in the middle of a record.
    pub fn cut_short(&self) -> impl Iterator<Item = String> {
        self.inputs.iter().filter_map(|input| {
            input.cut_short.as_ref().map(|error| format!("{} {error}", input.path.display()))
        })
    }
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
        Ok(std::mem::replace(&mut self.next, next))
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
