//! The driver between two real namespaces: a ping takes as long as the profile says, and those are lost that the seed says.
//! Needs root, /dev/net/tun and `ip`; where one is missing, says so and passes.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind, Write};
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::net::UnixStream;
use std::process::Command as Process;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::driver::{Command, Driver, Place, Summary, Wish, enter};
use crate::model::{Direction, Fate, Link};
use crate::profile::{Profile, Stretch};

const SEED: u64 = 20;
const PINGS: u64 = 60;
const PROFILE: &str =
    "about = 'a test'\n[[phase]]\nto_origin = { delay_ms = 20, loss = 0.2 }\nto_client = { delay_ms = 10 }";

fn ip(words: &str) -> Result<(), String> {
    let outcome = Process::new("ip").args(words.split(' ')).output().map_err(|error| format!("ip: {error}"))?;
    let said = String::from_utf8_lossy(&outcome.stderr);
    if outcome.status.success() { Ok(()) } else { Err(format!("ip {words}: {}", said.trim())) }
}

/// Two namespaces that vanish with it.
struct Namespaces([String; 2]);

impl Namespaces {
    fn new() -> Result<Namespaces, String> {
        if !std::path::Path::new("/dev/net/tun").exists() {
            return Err("no /dev/net/tun".to_owned());
        }
        let pid = std::process::id();
        let namespaces = Namespaces([format!("tl-test-{pid}-a"), format!("tl-test-{pid}-b")]);
        for name in &namespaces.0 {
            ip(&format!("netns add {name}"))?;
        }
        Ok(namespaces)
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in &self.0 {
            let _not_there = ip(&format!("netns delete {name}"));
        }
    }
}

/// A socket that lives in a namespace, whoever uses it.
fn socket_in(namespace: &str, address: &'static str) -> UdpSocket {
    let namespace = namespace.to_owned();
    let maker = std::thread::spawn(move || {
        enter(&namespace).expect("the namespace is there");
        UdpSocket::bind(address).expect("the address is the device's")
    });
    maker.join().expect("it does not panic")
}

/// Runs the driver on a thread; the stream stops it, and the thread then has the last summary.
fn start(namespaces: &Namespaces) -> io::Result<(UnixStream, JoinHandle<Summary>)> {
    let plan = Profile::parse(PROFILE).expect("it is right").plan(Stretch::PhonePop);
    let place = |index: usize| Place { namespace: namespaces.0[index].clone(), device: "wire".to_owned() };
    let wish = Wish { name: "test".to_owned(), plan, ends: [place(0), place(1)] };
    let (stop, stopped) = UnixStream::pair().expect("a pair");
    let mut driver = Driver::new(vec![wish], SEED, vec![(stopped, Command::Stop)])?;
    for (name, address) in namespaces.0.iter().zip(["10.77.9.1/30", "10.77.9.2/30"]) {
        // Nothing but the test's own packets: they are what the seed's fates are counted by.
        ip(&format!("-n {name} link set dev wire multicast off addrgenmode none")).expect("the device is there");
        ip(&format!("-n {name} address add {address} dev wire")).expect("the device is there");
        ip(&format!("-n {name} link set dev wire up")).expect("the device is there");
    }
    let runner = std::thread::spawn(move || {
        let mut last = None;
        let outcome = driver.run(|summary| {
            last = Some(summary.clone());
            Ok(())
        });
        outcome.expect("it carries on until it is told to stop");
        last.expect("it reports at least at the start")
    });
    Ok((stop, runner))
}

/// Sends numbers from one side, echoes them at the other, and gives the numbers that came back with the shortest time it took.
fn ping(namespaces: &Namespaces) -> (BTreeSet<u64>, Duration) {
    let near = socket_in(&namespaces.0[0], "10.77.9.1:7000");
    let far = socket_in(&namespaces.0[1], "10.77.9.2:7000");
    let far_address: SocketAddr = "10.77.9.2:7000".parse().expect("an address");
    let patience = Some(Duration::from_secs(2));
    near.set_read_timeout(patience).expect("not zero");
    far.set_read_timeout(patience).expect("not zero");
    let echo = std::thread::spawn(move || {
        let mut bytes = [0; 8];
        while let Ok((_, from)) = far.recv_from(&mut bytes) {
            far.send_to(&bytes, from).expect("the device is up");
        }
    });
    let mut sent_at = Vec::new();
    for number in 0..PINGS {
        sent_at.push(Instant::now());
        near.send_to(&number.to_be_bytes(), far_address).expect("the device is up");
    }
    let (mut returned, mut shortest) = (BTreeSet::new(), Duration::MAX);
    let mut bytes = [0; 8];
    while let Ok(8) = near.recv(&mut bytes) {
        let number = u64::from_be_bytes(bytes);
        assert!(returned.insert(number), "{number} came twice");
        shortest = shortest.min(sent_at[number as usize].elapsed());
    }
    echo.join().expect("it does not panic");
    (returned, shortest)
}

/// What the model makes of as many packets under the same seed.
fn expected() -> BTreeSet<u64> {
    let mut link = Link::new(Profile::parse(PROFILE).expect("it is right").plan(Stretch::PhonePop), SEED);
    let arrives = |number: &u64| matches!(link.offer(*number, Direction::ToOrigin, vec![0; 36]), Fate::Due(_));
    (0..PINGS).filter(arrives).collect()
}

#[test]
fn a_ping_between_namespaces_meets_the_link_it_was_promised() {
    let namespaces = match Namespaces::new() {
        Ok(namespaces) => namespaces,
        Err(reason) => return eprintln!("NOT RUN: {reason}. It needs root, /dev/net/tun and iproute2."),
    };
    let (mut stop, runner) = match start(&namespaces) {
        Ok(started) => started,
        Err(error) if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::NotFound) => {
            return eprintln!("NOT RUN: {error}. It needs root, /dev/net/tun and iproute2.");
        }
        Err(error) => panic!("{error}"),
    };
    let (returned, shortest) = ping(&namespaces);
    stop.write_all(b"x").expect("the driver listens");
    let summary = runner.join().expect("it does not panic");
    let expected = expected();
    assert!(expected.len() < PINGS as usize && !expected.is_empty(), "the seed loses some");
    assert_eq!(returned, expected, "those are lost that the seed says");
    assert!(shortest >= Duration::from_millis(30), "{shortest:?}");
    let report = &summary.links[0];
    assert_eq!((report.to_origin.offered, report.to_origin.delivered), (PINGS, expected.len() as u64), "{report:?}");
    assert_eq!((report.to_client.delivered, report.refused), (expected.len() as u64, 0));
}
