//! Kernel settings under `/proc/sys/net`, of the network namespace of the calling process.

use super::Error;
use std::fs;
use std::io::ErrorKind;

fn path(key: &str) -> String {
    format!("/proc/sys/{key}")
}

/// The value of a setting, named with slashes. None: there is no such setting (the device or the IP version is not there).
pub(super) fn read(key: &str) -> Result<Option<String>, Error> {
    match fs::read_to_string(path(key)) {
        Ok(value) => Ok(Some(value.trim().to_owned())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::os(format!("read {}", path(key)))(error)),
    }
}

/// Gives a setting another value.
pub(super) fn write(key: &str, value: &str) -> Result<(), Error> {
    fs::write(path(key), value).map_err(Error::os(format!("write {value} to {}", path(key))))
}

/// Gives a setting its `old` value back, unless it is not `new` any more.
pub(super) fn restore(key: &str, old: &str, new: &str) -> Result<Option<String>, Error> {
    match read(key)? {
        None => Ok(None),
        Some(value) if value == old => Ok(None),
        Some(value) if value == new => {
            write(key, old)?;
            Ok(Some(format!("{} is {old} again", dotted(key))))
        }
        Some(value) => Ok(Some(format!(
            "{} was left at {value}: it was set to {new} here and changed by somebody else since",
            dotted(key)
        ))),
    }
}

/// A setting's name as sysctl(8) writes it.
pub(super) fn dotted(key: &str) -> String {
    key.replace('/', ".")
}
