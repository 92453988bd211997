//! Client addresses told by the PROXY protocol: to servers of the lab's own, and to nginx as it is.

use crate::director::{LIMIT, V4, V6, World, in_default_world, load};
use crate::harness::{Outcome, Tests, check, ignore};
use crate::traffic::{run, transfer_on};
use libtest_mimic::Failed;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};
use uvs_lab::http::{Connection, Server, proxy};
use uvs_lab::{Process, wait};

pub(crate) const TESTS: Tests = &[
    ("requests_and_transfers", || in_default_world(requests_and_transfers)),
    ("a_server_that_speaks_first", || in_default_world(a_server_that_speaks_first)),
    ("datagrams", || in_default_world(datagrams)),
    ("nginx_as_it_is", || match Command::new("nginx").arg("-v").stderr(Stdio::null()).status() {
        Ok(_) => in_default_world(nginx),
        Err(_) => ignore("because nginx is not installed"),
    }),
    ("refused_and_saved", || in_default_world(refused_and_saved)),
];

const WAYS: [&str; 2] = ["proxy-v1", "proxy-v2"];

/// The client's family and the real server's.
const PAIRS: [(IpAddr, IpAddr); 4] = [(V4, V4), (V6, V6), (V6, V4), (V4, V6)];

/// A local address that no host has: the real servers send what is for it to their gateway.
fn local(like: IpAddr) -> IpAddr {
    if like.is_ipv4() {
        IpAddr::from([10, 9, 8, 7])
    } else {
        IpAddr::from([0x2001, 0xdb8, 0x999, 0, 0, 0, 0, 7])
    }
}

/// The service on port 80 of one family's VIP with a real server's port by full NAT, in place of the one there was.
fn balance(world: &World, clients: IpAddr, server: SocketAddr, how: &str) -> Outcome {
    let service = world.service(clients);
    world.ipvsadm("-C")?;
    world.ipvsadm(&format!("-A -t {service} -s rr --client-address {how}"))?;
    world.ipvsadm(&format!("-a -t {service} -r {server} -b"))?;
    world.ipvsadm(&format!("-P -t {service} -z {}", local(server.ip())))?;
    Ok(())
}

fn requests_and_transfers(world: &mut World) -> Outcome {
    let mut servers = Vec::new();
    for family in [V4, V6] {
        let address = world.server(0, family, 8080);
        servers.push(Server::start_proxied(&world.topology.servers[0], address, "rs1")?);
    }
    for (clients, family) in PAIRS {
        for how in WAYS {
            balance(world, clients, world.server(0, family, 8080), how)?;
            let service = world.service(clients);
            let mut connection = Connection::open(&world.topology.client, service, LIMIT)?;
            for _ in 0..2 {
                let told = connection.get("/client")?.body;
                let expected = format!("{}\n", connection.local()?);
                check(told == expected.as_bytes(), format!("{how}: {}", told.escape_ascii()))?;
            }
            run(world, &load(service, 100, false))?;
            run(world, &load(service, 100, true))?;
            transfer_on(world, clients, 5_000_000)?;
        }
    }
    check(world.drops("no_room")? == 0, "the header found no room")
}

/// A server that waits for the header, and then greets before its client has said anything.
fn a_server_that_speaks_first(world: &mut World) -> Outcome {
    for family in [V4, V6] {
        let address = world.server(0, family, 2525);
        let listener = world.topology.servers[0].run(|| TcpListener::bind(address))??;
        let greeter = std::thread::spawn(move || -> std::io::Result<()> {
            for stream in listener.incoming().take(WAYS.len()) {
                let mut stream = stream?;
                let client = proxy::read(&mut stream)?;
                writeln!(stream, "220 hello {client}")?;
                let mut said = String::new();
                BufReader::new(&stream).read_line(&mut said)?;
                write!(stream, "250 {said}")?;
            }
            Ok(())
        });
        for how in WAYS {
            balance(world, family, address, how)?;
            let service = world.service(family);
            let client = world.topology.client.run(|| TcpStream::connect_timeout(&service, LIMIT))??;
            client.set_read_timeout(Some(LIMIT))?;
            let mut lines = BufReader::new(&client);
            let mut line = String::new();
            lines.read_line(&mut line)?;
            check(line == format!("220 hello {}\n", client.local_addr()?), format!("{how}: {line}"))?;
            (&client).write_all(b"EHLO me\n")?;
            line.clear();
            lines.read_line(&mut line)?;
            check(line == "250 EHLO me\n", format!("{how}: {line}"))?;
            // Half closed, and closed by the server then.
            client.shutdown(std::net::Shutdown::Write)?;
            let mut rest = Vec::new();
            lines.read_to_end(&mut rest)?;
            check(rest.is_empty(), format!("{rest:?}"))?;
        }
        greeter.join().map_err(|_| "the server panicked")??;
    }
    Ok(())
}

fn datagrams(world: &mut World) -> Outcome {
    for (clients, family) in PAIRS {
        let address = world.server(0, family, 5353);
        let socket = world.topology.servers[0].run(|| UdpSocket::bind(address))??;
        socket.set_read_timeout(Some(LIMIT))?;
        let service = SocketAddr::new(world.vip(clients), 53);
        world.ipvsadm("-C")?;
        world.ipvsadm(&format!("-A -u {service} -s rr --client-address proxy-v2"))?;
        world.ipvsadm(&format!("-a -u {service} -r {address} -b"))?;
        world.ipvsadm(&format!("-P -u {service} -z {}", local(family)))?;
        // Between IP versions fragments do not travel.
        let whole = clients.is_ipv4() == family.is_ipv4();
        for length in [0, 1, 512, 1400, 1452, 1472, 3000, 8000] {
            if length > 1400 && !whole {
                continue;
            }
            let question = vec![7; length];
            let client = world.topology.client.run(|| UdpSocket::bind(any(clients)))??;
            client.connect(service)?;
            client.send(&question)?;
            let mut buffer = vec![0; 65_536];
            let (size, from) = socket.recv_from(&mut buffer)?;
            let (told, rest) = proxy::of_datagram(&buffer[..size])?;
            check(told == client.local_addr()?, format!("told of {told}"))?;
            check(rest == question, format!("{length} bytes became {}", rest.len()))?;
            socket.send_to(b"answer", from)?;
            client.set_read_timeout(Some(LIMIT))?;
            let size = client.recv(&mut buffer)?;
            check(&buffer[..size] == b"answer", "another answer")?;
            client.send(&question)?;
            let (size, _) = socket.recv_from(&mut buffer)?;
            check(buffer[..size] == question, "the second datagram is not as it was sent")?;
        }
    }
    Ok(())
}

fn any(like: IpAddr) -> SocketAddr {
    let ip = if like.is_ipv4() { IpAddr::from([0; 4]) } else { IpAddr::from([0_u16; 8]) };
    SocketAddr::new(ip, 0)
}

/// A directory that is removed again.
struct Directory(std::path::PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        let _gone_already = fs::remove_dir_all(&self.0);
    }
}

/// nginx on two addresses of a real server; it answers with the client that it was told of.
fn start_nginx(world: &World, directory: &Path) -> Result<Process, Failed> {
    let place = directory.display();
    let listen = |family| world.server(0, family, 8081);
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    let temporary: String =
        temporary.iter().map(|name| format!("{name}_temp_path {place}/{name};\n")).collect();
    let text = format!(
        "daemon off;\nmaster_process off;\nworker_processes 1;\npid {place}/pid;\nerror_log stderr;\nevents {{}}\n\
         http {{\naccess_log off;\n{temporary}\
         server {{\nlisten {} proxy_protocol;\nlisten {} proxy_protocol;\n\
         location / {{ return 200 \"$proxy_protocol_addr $proxy_protocol_port\\n\"; }}\n}}\n}}\n",
        listen(V4),
        listen(V6)
    );
    let file = directory.join("nginx.conf");
    fs::write(&file, text)?;
    let mut command = Command::new("nginx");
    command.arg("-p").arg(directory).arg("-e").arg("stderr").arg("-c").arg(&file);
    let process = Process::start(&world.topology.servers[0], &mut command)?;
    for family in [V4, V6] {
        let address = listen(family);
        let ready = || {
            let tried = world.topology.servers[0].run(|| TcpStream::connect_timeout(&address, LIMIT));
            tried.is_ok_and(|connected| connected.is_ok())
        };
        let started = wait::until("nginx to listen", LIMIT, ready);
        started.map_err(|error| format!("{error}: {}", process.stderr()))?;
    }
    Ok(process)
}

fn nginx(world: &mut World) -> Outcome {
    let directory = Directory(std::env::temp_dir().join(format!("uvs-nginx-{}", std::process::id())));
    fs::create_dir_all(&directory.0)?;
    let _nginx = start_nginx(world, &directory.0)?;
    for (clients, family) in PAIRS {
        for how in WAYS {
            balance(world, clients, world.server(0, family, 8081), how)?;
            for _ in 0..20 {
                let service = world.service(clients);
                let mut connection = Connection::open(&world.topology.client, service, LIMIT)?;
                let client = connection.local()?;
                let expected = format!("{} {}\n", client.ip(), client.port());
                for _ in 0..3 {
                    let answer = connection.get("/")?;
                    let said = answer.body.escape_ascii();
                    check(
                        answer.status == 200 && answer.body == expected.as_bytes(),
                        format!("{how}: {said}"),
                    )?;
                }
            }
        }
    }
    Ok(())
}

fn refused_and_saved(world: &mut World) -> Outcome {
    let datagrams = SocketAddr::new(world.vip(V4), 53);
    let refused = world.ipvsadm(&format!("-A -u {datagrams} -s rr --client-address proxy-v1"));
    let said = refused.err().and_then(|failed| failed.message().map(str::to_owned)).unwrap_or_default();
    check(said.contains("version 1 of the PROXY protocol is for TCP only: use proxy-v2"), &said)?;
    world.ipvsadm(&format!("-A -u {datagrams} -s rr --client-address proxy-v2"))?;
    world.ipvsadm(&format!("-A -t {} -s rr --client-address proxy-v1", world.service(V4)))?;
    let saved = world.ipvsadm("-Sn")?;
    for expected in ["--client-address proxy-v1\n", "--client-address proxy-v2\n"] {
        check(saved.contains(expected), &saved)?;
    }
    world.ipvsadm("-C")?;
    for line in saved.lines() {
        world.ipvsadm(line)?;
    }
    check(world.ipvsadm("-Sn")? == saved, "what was restored is not what was saved")
}
