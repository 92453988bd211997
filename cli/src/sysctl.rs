//! `uvs sysctl`: the settings that IPVS has under `net.ipv4.vs`, of a running director. Said as sysctl(8) says it.

use crate::{CANNOT_BEGIN, Socket, say};
use std::fmt;
use std::process::ExitCode;
use uvs_control::api::{Request, Response};
use uvs_control::client::{Client, ClientError};
use uvs_control::settings::{self, PREFIX, Setting};

/// Arguments of `uvs sysctl`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Show every setting
    #[arg(short, long)]
    all: bool,
    /// Show values without names
    #[arg(short = 'n', long)]
    values: bool,
    /// Show nothing of what is set
    #[arg(short, long)]
    quiet: bool,
    /// Set values, which KEY=VALUE does by itself
    #[arg(short, long)]
    write: bool,
    /// Settings to show, or to set, such as drop_entry or net.ipv4.vs.drop_entry=1
    #[arg(value_name = "KEY[=VALUE]", required_unless_present = "all")]
    keys: Vec<String>,
    #[command(flatten)]
    socket: Socket,
}

/// Why a key was neither shown nor set.
#[derive(Debug)]
enum Fault {
    Unknown(String),
    Invalid(Setting, String),
    Client(ClientError),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Unknown(name) => write!(f, "there is no setting {name}: `uvs sysctl -a` lists them"),
            // As sysctl(8) says it, and why.
            Fault::Invalid(setting, why) => {
                write!(f, "setting key \"{PREFIX}{}\": Invalid argument: {why}", setting.name())
            }
            Fault::Client(error) => error.fmt(f),
        }
    }
}

impl From<ClientError> for Fault {
    fn from(error: ClientError) -> Self {
        Fault::Client(error)
    }
}

/// Shows and sets settings, each whatever becomes of the others. Exit status 1 when one of them failed.
pub(crate) fn run(args: &Args) -> ExitCode {
    let client = args.socket.client();
    let mut code = ExitCode::SUCCESS;
    let all: Vec<_> = Setting::ALL.iter().map(|setting| setting.name().to_owned()).collect();
    for key in if args.all { &all } else { &args.keys } {
        match one(&client, args, key) {
            Ok(text) => say(&text),
            Err(fault) => {
                tell!("uvs sysctl: {fault}");
                if !matches!(
                    fault,
                    Fault::Unknown(_) | Fault::Invalid(..) | Fault::Client(ClientError::Refused(_))
                ) {
                    return ExitCode::from(CANNOT_BEGIN);
                }
                code = ExitCode::FAILURE;
            }
        }
    }
    code
}

/// What is printed for one key, when it was shown or set.
fn one(client: &Client, args: &Args, key: &str) -> Result<String, Fault> {
    let (name, given) =
        key.split_once('=').map_or((key, None), |(name, value)| (name.trim(), Some(value.trim())));
    let setting = Setting::find(name).ok_or_else(|| Fault::Unknown(name.to_owned()))?;
    let shown = match given {
        Some(text) => {
            set(client, setting, text)?;
            text.to_owned()
        }
        None => value(client, setting)?.to_string(),
    };
    Ok(match given {
        Some(_) if args.quiet => String::new(),
        _ if args.values => format!("{shown}\n"),
        _ => format!("{PREFIX}{} = {shown}\n", setting.name()),
    })
}

fn value(client: &Client, setting: Setting) -> Result<i32, Fault> {
    match client.ask(&Request::Settings)? {
        Response::Settings(settings) => {
            let found = settings.iter().find(|(name, _)| name == setting.name());
            found.map(|(_, value)| *value).ok_or_else(|| Fault::Unknown(setting.name().to_owned()))
        }
        other => Err(client.unexpected(other).into()),
    }
}

fn set(client: &Client, setting: Setting, text: &str) -> Result<(), Fault> {
    let number = settings::number(text).ok_or_else(|| format!("{text:?} is no whole number of 32 bits"));
    let number = number.and_then(|number| setting.fault(number).map_or(Ok(number), Err));
    let value = number.map_err(|why| Fault::Invalid(setting, why))?;
    match client.ask(&Request::SetSetting { name: setting.name().to_owned(), value })? {
        Response::Done => Ok(()),
        other => Err(client.unexpected(other).into()),
    }
}
