//! The control socket against peers of every kind.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use uvs_control::api::{CaptureSpec, Refusal, Request, Response, Timeouts};
use uvs_control::capture::Stream;
use uvs_control::client::{Client, ClientError};
use uvs_control::options::SocketPlace;
use uvs_control::socket::{Director, Server, SocketError, await_vacancy};
use uvs_engine::capture::{Captures, MAX_CAPTURES};
use uvs_engine::snapshot::Port;

/// A directory of one test's own.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("uvs-socket-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Directory(path)
    }

    fn place(&self) -> SocketPlace {
        SocketPlace::Path(self.0.join("socket"))
    }

    fn connect(&self) -> UnixStream {
        UnixStream::connect(self.0.join("socket")).unwrap()
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A director that knows one answer.
fn serve(place: &SocketPlace) -> Result<Server, SocketError> {
    Server::start(place, Arc::new(|_: Request| Response::Timeouts(Timeouts::default())))
}

fn answers(place: &SocketPlace) -> bool {
    let answer = Client::new(place.clone()).ask(&Request::Timeouts);
    matches!(answer, Ok(Response::Timeouts(timeouts)) if timeouts == Timeouts::default())
}

fn framed(body: &[u8]) -> Vec<u8> {
    [&u32::try_from(body.len()).unwrap().to_le_bytes(), body].concat()
}

/// Runs a closure in a network namespace of its own.
fn in_own_namespace<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        work()
    })
    .join()
    .unwrap()
}

#[test]
fn a_file_is_private_and_goes_with_the_server() {
    let directory = Directory::new("private");
    let server = serve(&directory.place()).unwrap();
    let file = directory.0.join("socket");
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    assert!(answers(&directory.place()));
    drop(server);
    assert!(!file.exists());
    assert_eq!(directory.0.read_dir().unwrap().count(), 0, "nothing else is left either");
}

#[test]
fn a_stale_file_is_replaced_and_a_live_one_refused() {
    let directory = Directory::new("stale");
    drop(UnixListener::bind(directory.0.join("socket")).unwrap());
    let server = serve(&directory.place()).unwrap();
    assert!(answers(&directory.place()));
    assert!(matches!(serve(&directory.place()), Err(SocketError::Taken(_))));
    assert!(answers(&directory.place()), "the first is as it was");
    drop(server);
    std::fs::write(directory.0.join("socket"), "precious").unwrap();
    assert!(matches!(serve(&directory.place()), Err(SocketError::NotASocket(_))));
    assert_eq!(std::fs::read(directory.0.join("socket")).unwrap(), b"precious");
}

#[test]
fn each_network_namespace_has_its_own() {
    in_own_namespace(|| {
        let here = serve(&SocketPlace::Namespace).unwrap();
        assert!(answers(&SocketPlace::Namespace));
        assert!(matches!(serve(&SocketPlace::Namespace), Err(SocketError::Taken(_))));
        in_own_namespace(|| {
            assert!(!answers(&SocketPlace::Namespace), "the other namespace's director does not answer here");
            let there = serve(&SocketPlace::Namespace).unwrap();
            assert!(answers(&SocketPlace::Namespace));
            drop(there);
        });
        drop(here);
        let none = Client::new(SocketPlace::Namespace).ask(&Request::Timeouts);
        assert!(matches!(none, Err(ClientError::NoDirector(_))));
        assert!(serve(&SocketPlace::Namespace).is_ok(), "the next start works at once");
    });
}

#[test]
fn nonsense_gets_a_refusal_or_nothing_and_stops_nothing() {
    let directory = Directory::new("nonsense");
    let _server = serve(&directory.place()).unwrap();
    let deep = format!("{{\"version\":1,\"request\":{}1{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let nested = r#"{"version":1,"request":{"batch":[{"batch":[]}]}}"#;
    for (what, bytes, refusal) in [
        ("nothing", vec![], None),
        ("half a length", vec![7, 0], None),
        ("half a message", framed(b"{\"version\":1")[..9].to_vec(), None),
        ("a gigabyte announced", vec![0, 0, 0, 64, b'x'], Some("16777216 is the limit")),
        ("the longest announced", vec![0xff; 9], Some("16777216 is the limit")),
        ("no JSON", framed(b"GET / HTTP/1.1\r\n\r\n"), Some("did not understand")),
        ("no text", framed(&[0xff, 0xfe, 0]), Some("did not understand")),
        ("an empty message", framed(b""), Some("did not understand")),
        ("another version", framed(br#"{"version":99,"request":{"new":1}}"#), Some("version 99")),
        ("an unknown request", framed(br#"{"version":1,"request":"reboot"}"#), Some("did not understand")),
        ("a batch inside a batch", framed(nested.as_bytes()), Some("a batch inside a batch")),
        ("a deep one", framed(deep.as_bytes()), Some("did not understand")),
    ] {
        let mut peer = directory.connect();
        peer.write_all(&bytes).unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        peer.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        // What was not read before the close comes back as a reset; the answer is there all the same.
        let _ = peer.read_to_end(&mut answer);
        match refusal {
            None => assert_eq!(answer, b"", "{what}"),
            Some(text) => {
                let response: Response = serde_json::from_slice(&answer[4..]).unwrap();
                let Response::Refused(refusal) = response else { panic!("{what}: {response:?}") };
                assert!(refusal.to_string().contains(text), "{what}: {refusal}");
            }
        }
        assert!(answers(&directory.place()), "after {what}");
    }
}

#[test]
fn silent_peers_stop_nobody() {
    let directory = Directory::new("silent");
    let _server = serve(&directory.place()).unwrap();
    let silent: Vec<_> = (0..100).map(|_| directory.connect()).collect();
    let mut halves: Vec<_> = (0..20).map(|_| directory.connect()).collect();
    halves.iter_mut().for_each(|peer| peer.write_all(&[0xff, 0xff, 0, 0, b'{']).unwrap());
    let begin = Instant::now();
    assert!(answers(&directory.place()));
    assert!(begin.elapsed() < Duration::from_secs(5), "nobody's patience was waited for");
    drop((silent, halves));
}

#[test]
fn more_peers_than_seats_are_served_when_the_silent_ones_lose_theirs() {
    let directory = Directory::new("seats");
    let server = serve(&directory.place()).unwrap();
    let silent: Vec<_> = (0..300).map(|_| directory.connect()).collect();
    let begin = Instant::now();
    assert!(answers(&directory.place()), "the silent ones were given up");
    assert!(begin.elapsed() < Duration::from_secs(9), "their patience was waited for");
    drop(server);
    drop(silent);
}

#[test]
fn many_peers_are_answered_at_once() {
    let directory = Directory::new("many");
    let _server = serve(&directory.place()).unwrap();
    let place = directory.place();
    std::thread::scope(|scope| {
        for _ in 0..32 {
            scope.spawn(|| (0..20).for_each(|_| assert!(answers(&place))));
        }
    });
}

/// What another user is made to do, named by an environment variable.
#[test]
#[ignore = "other tests run this as another user"]
fn as_nobody() {
    let address = SocketAddr::from_abstract_name("uvs/control").unwrap();
    if std::env::var_os("UVS_TEST_LISTEN").is_some() {
        let _listener = UnixListener::bind_addr(&address).unwrap();
        println!("listening");
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        return;
    }
    if let Some(path) = std::env::var_os("UVS_TEST_SERVE") {
        let place = SocketPlace::Path(path.into());
        let _server = serve(&place).unwrap();
        println!("{}", if answers(&place) { "answers" } else { "does not answer" });
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        return;
    }
    let mut peer = UnixStream::connect_addr(&address).unwrap();
    let _ = peer.write_all(&framed(br#"{"version":1,"request":"timeouts"}"#));
    let mut answer = Vec::new();
    let _ = peer.read_to_end(&mut answer);
    assert_eq!(answer, b"");
    let refused = Client::new(SocketPlace::Namespace).ask(&Request::Timeouts);
    assert!(matches!(refused, Err(ClientError::NotRoot)));
    println!("not heard");
}

fn nobody() -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "as_nobody", "--ignored", "--nocapture"]).uid(65534).gid(65534);
    command
}

/// A socket whose process is dying still takes connections, and never answers.
#[test]
fn a_start_waits_for_a_killed_director_to_be_gone() {
    in_own_namespace(|| {
        await_vacancy(&SocketPlace::Namespace).unwrap();
        let name = SocketAddr::from_abstract_name("uvs/control").unwrap();
        let dying = UnixListener::bind_addr(&name).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (silent, _) = dying.accept().unwrap();
                drop(dying);
                drop(silent);
            });
            await_vacancy(&SocketPlace::Namespace).unwrap();
        });
        let _server = serve(&SocketPlace::Namespace).unwrap();
        let begin = Instant::now();
        let refused = await_vacancy(&SocketPlace::Namespace);
        assert!(matches!(refused, Err(SocketError::Taken(_))), "{refused:?}");
        assert!(begin.elapsed() < Duration::from_secs(2), "it waited for one that answers");
    });
}

#[test]
fn only_root_is_heard() {
    in_own_namespace(|| {
        let _server = serve(&SocketPlace::Namespace).unwrap();
        let output = nobody().output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && said.contains("not heard"), "{said}");
        assert!(answers(&SocketPlace::Namespace));
    });
}

/// A director with capabilities instead of root is spoken to by its own user, not by another, be it root.
#[test]
fn a_directors_own_user_is_heard() {
    let directory = Directory::new("own-user");
    let place = directory.place();
    let SocketPlace::Path(path) = &place else { unreachable!("a directory's place is a path") };
    std::os::unix::fs::chown(path.parent().unwrap(), Some(65534), Some(65534)).unwrap();
    let mut child =
        nobody().env("UVS_TEST_SERVE", path).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
    let heard = said.find(|line| line.as_ref().unwrap().contains("answer")).unwrap().unwrap();
    let answer = Client::new(place.clone()).ask(&Request::Timeouts);
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    drop(said);
    assert!(heard.ends_with("answers"), "{heard}");
    assert!(matches!(answer, Err(ClientError::Impostor(_))), "{answer:?}");
}

#[test]
fn only_root_is_spoken_to() {
    in_own_namespace(|| {
        let mut child = nobody()
            .env("UVS_TEST_LISTEN", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(said.any(|line| line.unwrap().contains("listening")));
        let answer = Client::new(SocketPlace::Namespace).ask(&Request::Timeouts);
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
        drop(said);
        assert!(matches!(answer, Err(ClientError::Impostor(_))), "{answer:?}");
    });
}

/// A director of one device, whose captures can be watched.
struct Showing(Arc<Captures>);

impl Director for Showing {
    fn handle(&self, _: Request) -> Response {
        Response::Done
    }

    fn capture(&self, spec: &CaptureSpec) -> Result<Stream, Refusal> {
        let port = Port {
            ifindex: 1,
            name: "eth0".into(),
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
            up: true,
            merged: false,
            addresses: [None; 2],
        };
        Stream::begin(&self.0, &[port], spec)
    }
}

#[test]
fn captures_end_with_their_peers() {
    let directory = Directory::new("capture");
    let captures = Captures::new(1);
    let _server = Server::start(&directory.place(), Arc::new(Showing(captures.clone()))).unwrap();
    let client = Client::new(directory.place());
    let gone = |what: &str| {
        let end = Instant::now() + Duration::from_secs(5);
        while captures.feeds() > 0 {
            assert!(Instant::now() < end, "{what}");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(captures.count(), 0, "{what}");
    };
    let begin = || client.capture(CaptureSpec::default()).unwrap();
    let (interfaces, stream) = begin();
    assert_eq!(interfaces, ["eth0 in", "eth0 out", "eth0 drop"]);
    assert_eq!(captures.count(), 1);
    drop(stream);
    gone("a peer that closed");
    let (_, mut stream) = begin();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    let reader = uvs_engine::link::pcap::Reader::new(&rest[..]).unwrap();
    assert_eq!(reader.count(), 0);
    gone("a peer that has enough");
    let (_, mut stream) = begin();
    stream.write_all(b"and now?").unwrap();
    stream.read_to_end(&mut rest).unwrap();
    gone("a peer that talks on");
    let (_, mut stream) = begin();
    captures.close();
    stream.read_to_end(&mut rest).unwrap();
    gone("a director that ends");
}

#[test]
fn captures_that_cannot_be_are_refused() {
    let directory = Directory::new("capture-refused");
    let captures = Captures::new(1);
    let _server = Server::start(&directory.place(), Arc::new(Showing(captures.clone()))).unwrap();
    let client = Client::new(directory.place());
    let refused = |spec: CaptureSpec| client.capture(spec).unwrap_err().to_string();
    let filter = refused(CaptureSpec { filter: "port x".into(), ..CaptureSpec::default() });
    assert!(filter.starts_with("`x` is no port"), "{filter}");
    let device = refused(CaptureSpec { interfaces: vec!["eth1".into()], ..CaptureSpec::default() });
    assert_eq!(device, "eth1 is no device of the director, which has eth0");
    let most: Vec<_> = (0..MAX_CAPTURES).map(|_| client.capture(CaptureSpec::default()).unwrap()).collect();
    let one_more = refused(CaptureSpec::default());
    assert_eq!(one_more, "8 captures run already: end one of them first");
    drop(most);
}
