//! The configuration file of a director, `uvs run --config FILE`, in TOML. `docs/configuration.md` describes every key.
//!
//! A file is read to its end whatever is wrong with it, so that [`Faults`] are all there are. Services and real servers pass
//! the same [`crate::registry::Registry`] as what `ipvsadm` says.

mod persistence;
mod reader;
mod render;
mod services;
mod terms;

pub use reader::{Fault, Faults};
pub use render::render;

use crate::api::Timeouts;
use crate::options::{
    GuardTimeout, Interfaces, Io, Limits, OnCrash, RunOptions, SocketPlace, Workers, XdpMode,
};
use crate::registry::LONGEST_TIMEOUT;
use crate::settings::{Setting, Settings};
use reader::{Found, Reader, Section};
use std::io::Read as _;
use std::path::Path;
use std::time::Duration;
use uvs_engine::snapshot::OnRemove;

/// As [`uvs_engine::worker::MAX_WORKERS`].
const MAX_WORKERS: u32 = 64;
const _: () = assert!(MAX_WORKERS as usize == uvs_engine::worker::MAX_WORKERS);

/// Bytes of the longest file that is read: a million services and their real servers.
const LONGEST: u64 = 256 << 20;

/// Bytes of the longest path of a socket: `sun_path` (unix(7)) less room for the name it has while it is made.
const LONGEST_SOCKET: usize = 99;

/// Reads a file.
///
/// # Errors
/// Everything wrong with it; one fault at its beginning when it cannot be read.
pub fn load(path: &Path) -> Result<RunOptions, Faults> {
    let file = path.display().to_string();
    let unreadable =
        |message| Faults { file: file.clone(), faults: vec![Fault { line: 1, column: 1, message }] };
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(LONGEST + 1).read_to_end(&mut bytes))
        .map_err(|error| unreadable(format!("cannot be read: {error}")))?;
    if bytes.len() as u64 > LONGEST {
        return Err(unreadable(format!("found more than {} MiB, expected a configuration", LONGEST >> 20)));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()].split(|byte| *byte == b'\n').count();
        unreadable(format!("found a byte that is not UTF-8 in line {line}, expected a TOML file"))
    })?;
    parse(&file, &text)
}

/// Reads a text; `file` names it in faults.
///
/// # Errors
/// Everything wrong with it.
pub fn parse(file: &str, text: &str) -> Result<RunOptions, Faults> {
    let reader = Reader::new(text);
    let parsed = reader.parse();
    let mut options = RunOptions::default();
    if reader.is_clean() {
        options = document(&reader, Section::new(&reader, parsed.get_ref(), 0..0));
    }
    match reader.into_faults() {
        faults if faults.is_empty() => Ok(options),
        faults => Err(Faults { file: file.to_owned(), faults }),
    }
}

fn document(reader: &Reader<'_>, top: Section<'_, '_>) -> RunOptions {
    let options = top.table("director").map_or_else(RunOptions::default, |section| director(reader, section));
    let (services, locals) = services::read(reader, &top);
    let options = RunOptions {
        limits: top.table("limits").map_or(options.limits, limits),
        timeouts: top.table("timeouts").map_or(options.timeouts, timeouts),
        settings: top.table("settings").map_or_else(Settings::default, |section| settings(reader, section)),
        rfc6040: top.table("forward").is_some_and(shows_congestion),
        services,
        locals,
        ..options
    };
    top.finish();
    options
}

fn director(reader: &Reader<'_>, section: Section<'_, '_>) -> RunOptions {
    const IO: [(&str, Io); 3] = [("auto", Io::Auto), ("xdp", Io::Xdp), ("raw", Io::Raw)];
    const MODES: [(&str, XdpMode); 3] =
        [("auto", XdpMode::Auto), ("native", XdpMode::Native), ("generic", XdpMode::Generic)];
    const ON_CRASH: [(&str, OnCrash); 2] = [("guard", OnCrash::Guard), ("kernel", OnCrash::Kernel)];
    const ON_REMOVE: [(&str, OnRemove); 2] = [("drop", OnRemove::Drop), ("keep", OnRemove::Keep)];
    let options = RunOptions {
        interfaces: interfaces(reader, &section),
        io: section.one_of("io", &IO).unwrap_or_default(),
        xdp_mode: section.one_of("xdp_mode", &MODES).unwrap_or_default(),
        workers: workers(reader, &section),
        socket: socket(reader, &section),
        assign_vips: section.boolean("assign_vips").is_some_and(|found| found.value),
        reserve_ports: section.boolean("reserve_ports").is_some_and(|found| found.value),
        on_crash: section.one_of("on_crash", &ON_CRASH).unwrap_or_default(),
        guard_timeout: section
            .number("guard_timeout", 1..=86_400)
            .map_or_else(GuardTimeout::default, |found| {
                GuardTimeout(Duration::from_secs(found.value.into()))
            }),
        on_remove: section.one_of("on_remove", &ON_REMOVE).unwrap_or_default(),
        ..RunOptions::default()
    };
    section.finish();
    options
}

fn socket(reader: &Reader<'_>, section: &Section<'_, '_>) -> SocketPlace {
    let Some(path) = section.text("socket", "the path of a socket") else { return SocketPlace::Namespace };
    let (length, expected) = (path.value.len(), format!("the path of a socket, 1 to {LONGEST_SOCKET} bytes"));
    if length == 0 || path.value.contains('\0') {
        reader.expected(path.at, format!("the text {:?}", path.value), expected);
    } else if length > LONGEST_SOCKET {
        reader.expected(path.at, format!("{length} bytes"), expected);
    }
    SocketPlace::Path(path.value.into())
}

fn interfaces(reader: &Reader<'_>, section: &Section<'_, '_>) -> Interfaces {
    const EXPECTED: &str = "a list of interface names, or [\"all\"]";
    let Some(list) = section.texts("interfaces", EXPECTED) else { return Interfaces::default() };
    if list.value.is_empty() {
        reader.expected(list.at, "an empty list", EXPECTED);
    }
    for (index, name) in list.value.iter().enumerate() {
        let impossible = |letter: char| letter == '/' || letter.is_whitespace() || letter.is_control();
        if name.value.is_empty() || name.value.len() > 15 || name.value.contains(impossible) {
            let found = format!("the text {:?}", name.value);
            reader.expected(name.at.clone(), found, "the name of an interface, at most 15 bytes");
        } else if list.value[..index].iter().any(|earlier| earlier.value == name.value) {
            reader.expected(name.at.clone(), format!("`{}` again", name.value), "each interface once");
        } else if name.value == "all" && list.value.len() > 1 {
            reader.expected(name.at.clone(), "`all` beside other names", EXPECTED);
        }
    }
    Interfaces::from_names(list.value.iter().map(|name| name.value.to_owned()).collect())
}

fn workers(reader: &Reader<'_>, section: &Section<'_, '_>) -> Workers {
    let count = section.number("workers", 1..=MAX_WORKERS);
    let pinned = section.boolean("pinned");
    let Some(cores) = section.numbers("cores", 4095) else {
        return Workers::Count {
            count: count.and_then(|found| usize::try_from(found.value).ok()),
            pinned: pinned.is_none_or(|found| found.value),
        };
    };
    if let Some(count) = count {
        reader.expected(
            count.at,
            "`workers` beside `cores`",
            "only one of them: `cores` has one worker on each",
        );
    }
    if let Some(Found { value: false, at }) = pinned {
        reader.expected(at, "`pinned = false` beside `cores`", "`workers`, which need not be pinned");
    }
    if cores.value.is_empty() {
        reader.expected(cores.at, "an empty list", "the numbers of the cores, one worker on each");
    } else if cores.value.len() > MAX_WORKERS as usize {
        reader.expected(cores.at, format!("{} cores", cores.value.len()), format!("at most {MAX_WORKERS}"));
    }
    for (index, core) in cores.value.iter().enumerate() {
        if cores.value[..index].iter().any(|earlier| earlier.value == core.value) {
            reader.expected(core.at.clone(), format!("core {} again", core.value), "each core once");
        }
    }
    Workers::Cores(cores.value.iter().filter_map(|core| usize::try_from(core.value).ok()).collect())
}

fn limits(section: Section<'_, '_>) -> Limits {
    let Limits { connections_ipv4, connections_ipv6, destinations } = Limits::default();
    let read = |key, most, default| section.number(key, 1..=most).map_or(default, |found| found.value);
    let limits = Limits {
        connections_ipv4: read("connections_ipv4", 1 << 28, connections_ipv4),
        connections_ipv6: read("connections_ipv6", 1 << 28, connections_ipv6),
        destinations: read("destinations", 1 << 24, destinations),
    };
    section.finish();
    limits
}

fn timeouts(section: Section<'_, '_>) -> Timeouts {
    let Timeouts { tcp, tcp_fin, udp } = Timeouts::default();
    let read = |key, default| section.number(key, 1..=LONGEST_TIMEOUT).map_or(default, |found| found.value);
    let timeouts =
        Timeouts { tcp: read("tcp", tcp), tcp_fin: read("tcp_fin", tcp_fin), udp: read("udp", udp) };
    section.finish();
    timeouts
}

fn shows_congestion(section: Section<'_, '_>) -> bool {
    let rfc6040 = section.one_of("tunnel_ecn", &[("ipvs", false), ("rfc6040", true)]).unwrap_or_default();
    section.finish();
    rfc6040
}

fn settings(reader: &Reader<'_>, section: Section<'_, '_>) -> Settings {
    let mut settings = Settings::default();
    for setting in Setting::ALL {
        let Some(Found { value, at }) = section.integer(setting.name()) else { continue };
        if let Err(fault) = settings.set(*setting, value) {
            reader.fault(at, format!("found {value}: {fault}"));
        }
    }
    section.finish();
    settings
}
