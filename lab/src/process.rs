//! A child process in a namespace whose output is kept and whose end is seen to.

use crate::{Error, Namespace, Result, cleanup, wait};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// How long a process may take to end after SIGTERM.
const PATIENCE: Duration = Duration::from_secs(10);

/// A running child. Dropping it ends it: SIGTERM first, SIGKILL when that does not help.
///
/// What it prints goes to memory files, not to pipes: it never blocks on its reader, and may outlive it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    status: Option<ExitStatus>,
    stdout: File,
    stderr: File,
    stays: bool,
}

impl Process {
    /// Starts `command` in `namespace`, with no input.
    pub fn start(namespace: &Namespace, command: &mut Command) -> Result<Self> {
        let (stdout, stderr) = (memory_file("stdout")?, memory_file("stderr")?);
        let copy = |file: &File| file.try_clone().map(Stdio::from).map_err(Error::when("copy a descriptor"));
        command.stdin(Stdio::null()).stdout(copy(&stdout)?).stderr(copy(&stderr)?);
        let mut living = cleanup::living();
        let child = namespace.start(command)?;
        living.children.insert(child.id().cast_signed());
        drop(living);
        Ok(Process { child, status: None, stdout, stderr, stays: false })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed on stdout.
    pub fn stdout(&self) -> String {
        contents(&self.stdout)
    }

    /// What it has printed on stderr.
    pub fn stderr(&self) -> String {
        contents(&self.stderr)
    }

    /// Waits until a line of its stdout is `line`. When it ends instead, the error says what it printed.
    pub fn wait_for_line(&mut self, line: &str, limit: Duration) -> Result<()> {
        let ended = wait::until_some(&format!("the line {line:?}"), limit, || {
            let said = contents(&self.stdout).lines().any(|said| said == line);
            said.then_some(None).or_else(|| self.try_status().map(Some))
        });
        match ended {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(self.unexpected(&format!("ended with {status}"))),
            Err(_) => Err(self.unexpected(&format!("did not say {line:?} within {} s", limit.as_secs()))),
        }
    }

    fn unexpected(&self, what: &str) -> Error {
        let said = format!("{}{}", self.stdout(), self.stderr());
        Error::Protocol(format!("the process {what}, having said:\n{}", said.trim_end()))
    }

    /// Its exit status, once it has ended.
    pub fn try_status(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            let mut living = cleanup::living();
            self.status = self.child.try_wait().ok().flatten();
            if self.status.is_some() {
                living.children.remove(&self.child.id().cast_signed());
            }
        }
        self.status
    }

    /// Waits until it has ended, at most `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        wait::until_some("the process to end", limit, || self.try_status())
            .map_err(|_| self.unexpected(&format!("was still running after {} s", limit.as_secs())))
    }

    /// Sends it a signal, unless it has ended.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.try_status().is_some() {
            return Ok(());
        }
        kill(Pid::from_raw(self.child.id().cast_signed()), signal)
            .map_err(Error::when(format!("send {signal}")))
    }

    /// Asks it to end and waits until it has.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait(PATIENCE)
    }

    /// Kills it, as kill -9 does, and waits until it is gone.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGKILL)?;
        self.wait(PATIENCE)
    }

    /// Leaves it running when this value, and this process, are gone.
    pub fn keep(mut self) {
        cleanup::living().children.remove(&self.child.id().cast_signed());
        self.stays = true;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.stays && self.terminate().is_err() {
            let _nothing_more_can_be_done = self.kill();
        }
    }
}

fn memory_file(name: &str) -> Result<File> {
    memfd_create(name, MFdFlags::MFD_CLOEXEC).map(File::from).map_err(Error::when("make a memory file"))
}

/// Everything written to `file` so far; its offset belongs to the writer and is not touched.
fn contents(file: &File) -> String {
    let mut bytes = Vec::new();
    let mut chunk = [0; 8192];
    loop {
        match file.read_at(&mut chunk, bytes.len() as u64) {
            Ok(0) => break,
            Ok(length) => bytes.extend_from_slice(&chunk[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
