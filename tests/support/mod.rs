//! What tests against real processes share: a scratch directory, free ports, child processes that end with the test,
//! and Debian's nginx with a configuration of the test's own.
//!
//! A process is only ever ended by the id it was started with. The tests at the bottom try every helper, so a test that
//! uses few of them has no dead code.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How long a server may take until it accepts connections.
const START_TIME_MAX: Duration = Duration::from_secs(10);

/// How long a process may take to end after SIGTERM before it is killed.
const STOP_TIME_MAX: Duration = Duration::from_secs(5);

/// How often a server is started anew when another process took its port first.
const START_ATTEMPTS_MAX: u32 = 5;

/// A directory of the test's own, removed with all that is in it.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Makes an empty directory whose name contains `name`.
    pub fn new(name: &str) -> Scratch {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let unique = format!("trunkline-{name}-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(unique);
        fs::create_dir(&path).expect("the directory for temporary files takes a new one");
        Scratch { path }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file, with the directories above it, and gives its path.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path.join(name);
        fs::create_dir_all(path.parent().expect("the scratch directory is above it")).expect("scratch is writable");
        fs::write(&path, content).expect("scratch is writable");
        path
    }

    /// Reads a file.
    pub fn read(&self, name: &str) -> Vec<u8> {
        let path = self.path.join(name);
        fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A failed test has something better to say than that its directory is gone.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// A loopback address for a server. Outside the range from which the kernel takes the ports of connections, and apart
/// from those of other test processes: nothing takes it before the server does, or while the server is restarted.
pub fn address() -> SocketAddr {
    static COUNT: AtomicU16 = AtomicU16::new(0);
    let of_process = (std::process::id() % 640) as u16 * 32;
    loop {
        let count = COUNT.fetch_add(1, Ordering::Relaxed) % (640 * 32);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 10_240 + (of_process + count) % (640 * 32)));
        if TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

/// Waits until `address` accepts connections, or `process` has ended, or time is up; tells whether it accepts.
pub fn wait_until_accepting(address: SocketAddr, process: &mut Process) -> bool {
    let until = Instant::now() + START_TIME_MAX;
    while Instant::now() < until && process.exit_status().is_none() {
        if TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok() {
            // Whoever answers might be a stranger while ours is failing to bind.
            thread::sleep(Duration::from_millis(20));
            return process.exit_status().is_none();
        }
        thread::sleep(Duration::from_millis(5));
    }
    false
}

/// A child process that is ended when this is dropped: SIGTERM first, SIGKILL if it does not listen.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

impl Process {
    /// Starts `command` with no input.
    pub fn start(command: &mut Command) -> Process {
        let child = command.stdin(Stdio::null()).spawn();
        Process { child: child.unwrap_or_else(|error| panic!("{}: {error}", command.get_program().display())) }
    }

    /// The id of the process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("the process is a child that nobody else waits for")
    }

    /// Asks it to end and waits until it has.
    pub fn terminate(&mut self) -> ExitStatus {
        if self.exit_status().is_none() {
            self.signal("TERM");
        }
        let until = Instant::now() + STOP_TIME_MAX;
        while Instant::now() < until {
            if let Some(status) = self.exit_status() {
                return status;
            }
            thread::sleep(Duration::from_millis(5));
        }
        self.kill()
    }

    /// Ends it at once with SIGKILL.
    pub fn kill(&mut self) -> ExitStatus {
        // It may have ended by itself in between.
        let _ = self.child.kill();
        self.child.wait().expect("the process is a child that nobody else waits for")
    }

    /// Sends it a signal by name. It has not been waited for, so its id is still its own.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").arg("-s").arg(name).arg("--").arg(self.id().to_string()).status();
        status.expect("kill(1) is part of every Debian");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.terminate();
    }
}

/// An nginx of the test's own: prefix, configuration, logs and files in a scratch directory.
#[derive(Debug)]
pub struct Nginx {
    // Dropped in this order: the process ends before its directory goes.
    process: Process,
    address: SocketAddr,
    scratch: Scratch,
}

impl Nginx {
    /// Starts nginx on a free port and waits until it accepts. `prepare` may put files into the scratch directory and
    /// gives the configuration without the parts that every test needs: the blocks `http`, `stream` and so on, which
    /// listen on the address it is given. Relative paths in it start at the scratch directory.
    pub fn start(mut prepare: impl FnMut(SocketAddr, &Scratch) -> String) -> Nginx {
        let mut errors = String::new();
        for _ in 0..START_ATTEMPTS_MAX {
            let scratch = Scratch::new("nginx");
            let address = address();
            let blocks = prepare(address, &scratch);
            fs::create_dir(scratch.path().join("logs")).expect("scratch is writable");
            // One process without a master: its id is the only one to end.
            let common = "daemon off; master_process off; pid nginx.pid; error_log logs/error.log info;\n\
                events { worker_connections 1024; }\n";
            let configuration = scratch.write("nginx.conf", format!("{common}{blocks}"));
            let mut command = Command::new(find_nginx());
            command.arg("-p").arg(scratch.path()).arg("-c").arg(configuration).arg("-e").arg("logs/error.log");
            let mut process = Process::start(command.stdout(Stdio::null()).stderr(Stdio::null()));
            if wait_until_accepting(address, &mut process) {
                return Nginx { process, address, scratch };
            }
            errors = String::from_utf8_lossy(&scratch.read("logs/error.log")).into_owned();
        }
        panic!("nginx does not start:\n{errors}");
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its directory.
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }
}

/// The paths that nginx keeps by default under /var, moved into the prefix. Goes into an `http` block.
pub const NGINX_HTTP_PATHS: &str = "access_log off; client_body_temp_path tmp-body; proxy_temp_path tmp-proxy; \
    fastcgi_temp_path tmp-fastcgi; uwsgi_temp_path tmp-uwsgi; scgi_temp_path tmp-scgi;";

/// Debian keeps nginx where the path of a user does not look.
fn find_nginx() -> PathBuf {
    let found = ["/usr/sbin/nginx", "/usr/local/sbin/nginx", "/usr/bin/nginx"].into_iter().map(PathBuf::from);
    found.into_iter().find(|path| path.exists()).expect("this test needs nginx: apt-get install nginx-light")
}

mod tests {
    use super::*;

    #[test]
    fn a_scratch_directory_goes_with_its_owner() {
        let scratch = Scratch::new("own");
        scratch.write("a/b", "c");
        assert_eq!(scratch.read("a/b"), b"c");
        let path = scratch.path().to_owned();
        drop(scratch);
        assert!(!path.exists());
    }

    #[test]
    fn an_address_can_be_bound() {
        let is_bound = (0..START_ATTEMPTS_MAX).any(|_| TcpListener::bind(address()).is_ok());
        assert!(is_bound, "not every port is taken in the moment between");
    }

    #[test]
    fn a_process_ends_with_its_owner() {
        let mut process = Process::start(Command::new("sleep").arg("60"));
        assert!(process.id() > 0 && process.exit_status().is_none());
        assert!(!process.terminate().success());
        let mut process = Process::start(Command::new("sleep").arg("60"));
        process.signal("STOP");
        assert!(!process.kill().success());
    }

    #[test]
    fn nginx_serves_and_ends() {
        let mut nginx = Nginx::start(|address, _| {
            format!("http {{ {NGINX_HTTP_PATHS} server {{ listen {address}; return 200; }} }}")
        });
        let address = nginx.address();
        assert!(TcpStream::connect(address).is_ok());
        assert!(!nginx.scratch().read("nginx.conf").is_empty());
        assert!(nginx.process().terminate().success());
        drop(nginx);
        assert!(TcpStream::connect(address).is_err());
    }
}
