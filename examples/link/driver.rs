//! Carries packets between devices through links. Owns the devices, the clock and the timer; decides nothing about a
//! packet. One thread, one epoll: a device is readable, a packet is due (timerfd, so that no timer slack applies), or a
//! command came.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use rustix::event::epoll;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use serde::Serialize;
use std::os::fd::AsFd;
use tun_rs::{DeviceBuilder, SyncDevice};

use crate::model::{Counts, Direction, Link, NANOS_PER_MS, NANOS_PER_SECOND, Nanos, Plan};

/// Packets taken from one device before the others and the timer have their turn.
const PACKETS_PER_TURN: usize = 32;
/// Longest packet read: above the MTU of 1500, so that one that is too long is noticed and not cut.
const READ_BYTES_MAX: usize = 9216;

/// The timer rings at least as often: a machine that holds this process up is noticed also while no packet is due.
const TICK_NS: u64 = 20 * NANOS_PER_MS;

const TIMER_KEY: u64 = 1 << 32;
const COMMAND_KEY: u64 = 2 << 32;

/// What the driver can be told while it runs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Command {
    /// Begin anew: time zero, the first packet, the same fates; what is under way is dropped.
    Begin,
    /// Report now.
    Report,
    /// Report and end.
    Stop,
}

/// Where one end of a link is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Place {
    /// Name of a namespace, as `ip netns` has it.
    pub namespace: String,
    /// Name of the device to be made there.
    pub device: String,
}

/// A link that is to be made.
#[derive(Clone, Debug)]
pub struct Wish {
    /// Name in reports.
    pub name: String,
    /// What it does.
    pub plan: Plan,
    /// The client's end and the origin's end.
    pub ends: [Place; 2],
}

/// What happened on one link since it began.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Name of the link.
    pub name: String,
    /// Packets and bytes from the client's end.
    pub to_origin: Counts,
    /// Packets and bytes to the client's end.
    pub to_client: Counts,
    /// Packets that a device would not take: it was down.
    pub refused: u64,
    /// How much later than due packets went out.
    pub late: Lateness,
}

/// How far a machine falls behind the model.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Lateness {
    /// Mean, in microseconds.
    pub mean_micros: f64,
    /// The worst, in microseconds.
    pub max_micros: f64,
    /// Packets that went out more than a millisecond late.
    pub above_1ms: u64,
}

/// A report over all links.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// How often [`Command::Begin`] was carried out.
    pub begun: u64,
    /// Time zero of the links, as time of day.
    pub began_unix_micros: u64,
    /// Since time zero.
    pub seconds: f64,
    /// The longest that the machine kept this process from running, in microseconds, as far as its timer shows.
    pub held_up_max_micros: f64,
    /// One per link.
    pub links: Vec<Report>,
}

struct Cable {
    wish: Wish,
    link: Link,
    /// The client's end and the origin's end.
    devices: [SyncDevice; 2],
    refused: u64,
    late_sum_ns: u64,
    late_max_ns: u64,
    late_above_1ms: u64,
}

/// All links of one process.
pub struct Driver {
    cables: Vec<Cable>,
    commands: Vec<(UnixStream, Command)>,
    seed: u64,
    epoll: OwnedFd,
    timer: OwnedFd,
    /// When the timer rings: a packet is due, or it is time for a tick. None: not armed.
    timer_due: Option<Nanos>,
    zero: Instant,
    zero_unix_micros: u64,
    begun: u64,
    held_up_max_ns: u64,
}

impl Driver {
    /// Makes the devices, down and without addresses. They vanish with the driver.
    ///
    /// # Errors
    /// What the kernel says, with the name of the namespace and the device.
    pub fn new(wishes: Vec<Wish>, seed: u64, commands: Vec<(UnixStream, Command)>) -> io::Result<Driver> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let watch = |fd: &dyn AsFd, key| epoll::add(&epoll, fd, epoll::EventData::new_u64(key), epoll::EventFlags::IN);
        watch(&timer, TIMER_KEY)?;
        for (index, (stream, _)) in commands.iter().enumerate() {
            stream.set_nonblocking(true)?;
            watch(stream, COMMAND_KEY | index as u64)?;
        }
        let mut cables = Vec::with_capacity(wishes.len());
        for (index, wish) in wishes.into_iter().enumerate() {
            let devices = [make_device(&wish.ends[0])?, make_device(&wish.ends[1])?];
            for (end, device) in devices.iter().enumerate() {
                watch(device, (index * 2 + end) as u64)?;
            }
            let link = Link::new(wish.plan.clone(), link_seed(seed, index));
            cables.push(Cable { wish, link, devices, refused: 0, late_sum_ns: 0, late_max_ns: 0, late_above_1ms: 0 });
        }
        let (zero, zero_unix_micros) = time_now();
        Ok(Driver {
            cables,
            commands,
            seed,
            epoll,
            timer,
            timer_due: None,
            zero,
            zero_unix_micros,
            begun: 0,
            held_up_max_ns: 0,
        })
    }

    /// Carries packets until told to stop; hands every report to `report`.
    ///
    /// # Errors
    /// What the kernel says of epoll, the timer or reading a device; what `report` says.
    pub fn run(&mut self, mut report: impl FnMut(&Summary) -> io::Result<()>) -> io::Result<()> {
        let mut events = [MaybeUninit::<epoll::Event>::uninit(); 16];
        let mut buffer = vec![0; READ_BYTES_MAX];
        report(&self.summary())?;
        loop {
            self.deliver();
            self.arm()?;
            let (ready, _) = match epoll::wait(&self.epoll, &mut events, None) {
                Err(rustix::io::Errno::INTR) => continue,
                outcome => outcome?,
            };
            for event in ready {
                let key = event.data.u64();
                if key & COMMAND_KEY != 0 {
                    let (stream, command) = &mut self.commands[(key ^ COMMAND_KEY) as usize];
                    let command = *command;
                    drain(stream)?;
                    if command == Command::Begin {
                        self.begin();
                    }
                    report(&self.summary())?;
                    if command == Command::Stop {
                        return Ok(());
                    }
                } else if key == TIMER_KEY {
                    let late_ns = self.timer_due.take().map_or(0, |due| self.now().saturating_sub(due));
                    self.held_up_max_ns = self.held_up_max_ns.max(late_ns);
                    let mut expirations = [0; 8];
                    let _rung = rustix::io::read(&self.timer, &mut expirations);
                } else {
                    self.take(key as usize, &mut buffer)?;
                }
            }
        }
    }

    fn now(&self) -> Nanos {
        self.zero.elapsed().as_nanos() as Nanos
    }

    fn begin(&mut self) {
        for (index, cable) in self.cables.iter_mut().enumerate() {
            cable.link = Link::new(cable.wish.plan.clone(), link_seed(self.seed, index));
            (cable.refused, cable.late_sum_ns, cable.late_max_ns, cable.late_above_1ms) = (0, 0, 0, 0);
        }
        (self.zero, self.zero_unix_micros) = time_now();
        self.begun += 1;
        self.held_up_max_ns = 0;
        // It was set in the time before.
        self.timer_due = None;
    }

    /// Reads what a device has, up to a turn's worth.
    fn take(&mut self, end: usize, buffer: &mut [u8]) -> io::Result<()> {
        for _ in 0..PACKETS_PER_TURN {
            let now = self.now();
            let cable = &mut self.cables[end / 2];
            match cable.devices[end % 2].recv(buffer) {
                Ok(size) => cable.link.offer(now, Direction::BOTH[end % 2], buffer[..size].to_vec()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(said_by(&cable.wish.ends[end % 2], &error)),
            };
        }
        Ok(())
    }

    /// Hands on everything that is due.
    fn deliver(&mut self) {
        for index in 0..self.cables.len() {
            let mut now = self.now();
            let cable = &mut self.cables[index];
            while let Some((direction, due, packet)) = cable.link.deliver(now) {
                let end = 1 - direction as usize;
                cable.refused += u64::from(cable.devices[end].send(&packet).is_err());
                cable.late_sum_ns += now - due;
                cable.late_max_ns = cable.late_max_ns.max(now - due);
                cable.late_above_1ms += u64::from(now - due > NANOS_PER_MS);
                now = self.zero.elapsed().as_nanos() as Nanos;
            }
        }
    }

    /// Sets the timer to the next packet that is due.
    fn arm(&mut self) -> io::Result<()> {
        let packet_due = self.cables.iter().filter_map(|cable| cable.link.due_next()).min();
        let due = match (packet_due, self.timer_due) {
            // What it is set to comes first.
            (Some(packet), Some(timer)) if packet >= timer => return Ok(()),
            (None, Some(_)) => return Ok(()),
            (Some(packet), _) => packet.min(self.now() + TICK_NS),
            (None, None) => self.now() + TICK_NS,
        };
        self.timer_due = Some(due);
        // Zero would disarm it.
        let wait_ns = due.saturating_sub(self.now()).max(1);
        let it_value =
            Timespec { tv_sec: (wait_ns / NANOS_PER_SECOND) as i64, tv_nsec: (wait_ns % NANOS_PER_SECOND) as i64 };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
        rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)?;
        Ok(())
    }

    fn summary(&self) -> Summary {
        let links = self.cables.iter().map(Cable::report).collect();
        let seconds = self.now() as f64 / NANOS_PER_SECOND as f64;
        Summary {
            begun: self.begun,
            began_unix_micros: self.zero_unix_micros,
            seconds,
            held_up_max_micros: self.held_up_max_ns as f64 / 1e3,
            links,
        }
    }
}

impl Cable {
    fn report(&self) -> Report {
        let [to_origin, to_client] = self.link.counts();
        let delivered = to_origin.delivered + to_client.delivered;
        let late = Lateness {
            mean_micros: self.late_sum_ns as f64 / 1e3 / delivered.max(1) as f64,
            max_micros: self.late_max_ns as f64 / 1e3,
            above_1ms: self.late_above_1ms,
        };
        Report { name: self.wish.name.clone(), to_origin, to_client, refused: self.refused, late }
    }
}

/// Each link has fates of its own.
fn link_seed(seed: u64, index: usize) -> u64 {
    seed.wrapping_add((index as u64) << 48)
}

fn time_now() -> (Instant, u64) {
    let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (Instant::now(), unix.as_micros() as u64)
}

fn drain(stream: &mut UnixStream) -> io::Result<()> {
    let mut bytes = [0; 64];
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

fn said_by(place: &Place, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("device {} in namespace {}: {error}", place.device, place.namespace))
}

/// Makes a device inside its namespace, on a thread that goes there and ends: this one stays where it is.
fn make_device(place: &Place) -> io::Result<SyncDevice> {
    let inside = place.clone();
    let maker = std::thread::spawn(move || {
        enter(&inside.namespace)?;
        // No offloads: what is read are packets as they would be on a wire, no larger than the MTU.
        let builder = DeviceBuilder::new().name(&inside.device).inherit_enable_state();
        let device = builder.offload(false).packet_information(false).build_sync()?;
        device.set_nonblocking(true)?;
        Ok(device)
    });
    maker
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the thread that makes it panicked")))
        .map_err(|error| said_by(place, &error))
}

/// Moves the calling thread into a namespace that `ip netns` made.
///
/// # Errors
/// There is none of that name, or the caller may not.
pub fn enter(namespace: &str) -> io::Result<()> {
    let file = File::open(Path::new("/run/netns").join(namespace))?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
    Ok(())
}
