//! Profiles: what a person writes about a network, checked and turned into plans. Never guesses: a word it does not know
//! and a figure out of range are errors that name the file, the place and what would be right.

use std::path::Path;

use serde::Deserialize;

use crate::model::{Course, Loss, NANOS_PER_MS, Phase, Plan};

/// A packet that every queue must be able to hold: the MTU of the links.
const PACKET_BYTES_MAX: u64 = 1500;
/// No delay, duration or jitter is longer: a day.
const TIME_MS_MAX: f64 = 86_400_000.0;
/// Rates between 1 kbit/s and 100 Gbit/s: a packet then takes between 120 ns and 12 s.
const RATE_KBIT_MAX: u64 = 100_000_000;
/// Phases of one profile.
const PHASES_MAX: usize = 64;

/// A file of `profiles/`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ProfileFile {
    /// One line for people.
    about: String,
    /// What lies between phone and POP, one path after the other.
    phase: Vec<PhaseTable>,
    /// What lies between POP and data center; without it, [`good_path`].
    pop_dc: Option<PathTable>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PhaseTable {
    name: Option<String>,
    duration_ms: Option<f64>,
    to_origin: CourseTable,
    to_client: CourseTable,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PathTable {
    to_origin: CourseTable,
    to_client: CourseTable,
}

/// One direction, in the units people use.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct CourseTable {
    delay_ms: f64,
    jitter_ms: f64,
    jitter_reorders: bool,
    /// Share of packets lost over a long time, with either model.
    loss: f64,
    /// Mean length of a bad spell in packets. Without it, losses are independent.
    loss_burst_packets: Option<f64>,
    /// Chance of a packet in a bad spell to be lost.
    loss_in_burst: Option<f64>,
    reorder: f64,
    reorder_delay_ms: f64,
    rate_kbit: Option<u64>,
    queue_bytes: Option<u64>,
    blackout: bool,
}

/// A profile that was checked: what each of the three links is to do.
#[derive(Debug)]
pub struct Profile {
    /// One line for people.
    pub about: String,
    phone_pop: Plan,
    pop_dc: Phase,
}

/// Which of the three links.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Stretch {
    /// The last mile.
    PhonePop,
    /// What a trunk crosses.
    PopDc,
    /// The way without a POP: both delays, and the rest as on the last mile.
    PhoneDc,
}

impl Stretch {
    /// All, with the names they have on the command line and in reports.
    pub const ALL: [(Stretch, &str); 3] =
        [(Stretch::PhonePop, "phone_pop"), (Stretch::PopDc, "pop_dc"), (Stretch::PhoneDc, "phone_dc")];
}

impl Profile {
    /// Reads a profile.
    ///
    /// # Errors
    /// A sentence that names file, place and remedy.
    pub fn read(path: &Path) -> Result<Profile, String> {
        let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        Profile::parse(&text).map_err(|error| format!("{}: {error}", path.display()))
    }

    /// Reads the text of a profile.
    ///
    /// # Errors
    /// A sentence that names place and remedy.
    pub fn parse(text: &str) -> Result<Profile, String> {
        let file: ProfileFile = toml::from_str(text).map_err(|error| error.to_string())?;
        if file.phase.is_empty() || file.phase.len() > PHASES_MAX {
            return Err(format!("it has {} tables [[phase]]; give 1 to {PHASES_MAX}", file.phase.len()));
        }
        let phase_count = file.phase.len();
        let mut phases = Vec::with_capacity(phase_count);
        for (index, table) in file.phase.iter().enumerate() {
            phases.push(phase(index, index + 1 == phase_count, table)?);
        }
        let courses = match &file.pop_dc {
            Some(table) => {
                [course("pop_dc.to_origin", &table.to_origin)?, course("pop_dc.to_client", &table.to_client)?]
            }
            None => [good_path(), good_path()],
        };
        let pop_dc = Phase { name: "pop_dc".to_owned(), duration_ns: None, courses };
        Ok(Profile { about: file.about, phone_pop: Plan { phases }, pop_dc })
    }

    /// What the link of a stretch is to do.
    pub fn plan(&self, stretch: Stretch) -> Plan {
        match stretch {
            Stretch::PhonePop => self.phone_pop.clone(),
            Stretch::PopDc => Plan { phases: vec![self.pop_dc.clone()] },
            Stretch::PhoneDc => {
                let mut plan = self.phone_pop.clone();
                for phase in &mut plan.phases {
                    for (course, further) in phase.courses.iter_mut().zip(&self.pop_dc.courses) {
                        course.delay_ns += further.delay_ns;
                    }
                }
                plan
            }
        }
    }
}

/// POP to data center: 150 ms there and back, nothing lost (design, section 1).
fn good_path() -> Course {
    Course { delay_ns: 75 * NANOS_PER_MS, ..Course::default() }
}

fn phase(index: usize, is_last: bool, table: &PhaseTable) -> Result<Phase, String> {
    let place = format!("phase {}", index + 1);
    let duration_ns = match table.duration_ms {
        Some(ms) if ms < 1.0 => return Err(format!("{place}: duration_ms is {ms}; a phase lasts at least 1 ms")),
        Some(ms) => Some(time_ns(&place, "duration_ms", ms)?),
        None if is_last => None,
        None => return Err(format!("{place}: only the last phase may last for ever; give it a duration_ms")),
    };
    Ok(Phase {
        name: table.name.clone().unwrap_or(place.clone()),
        duration_ns,
        courses: [
            course(&format!("{place}, to_origin"), &table.to_origin)?,
            course(&format!("{place}, to_client"), &table.to_client)?,
        ],
    })
}

fn course(place: &str, table: &CourseTable) -> Result<Course, String> {
    let delay_ns = time_ns(place, "delay_ms", table.delay_ms)?;
    let jitter_ns = time_ns(place, "jitter_ms", table.jitter_ms)?;
    if jitter_ns > delay_ns {
        return Err(format!("{place}: jitter_ms is above delay_ms; nothing arrives before it was sent"));
    }
    let rate_bits_per_s = match table.rate_kbit {
        Some(rate) if !(1..=RATE_KBIT_MAX).contains(&rate) => {
            return Err(format!(
                "{place}: rate_kbit is {rate}; give 1 to {RATE_KBIT_MAX}, or leave it out for no limit"
            ));
        }
        rate => rate.map(|rate| rate * 1000),
    };
    let queue_bytes_max = match (table.rate_kbit, table.queue_bytes) {
        (Some(_), Some(bytes)) if bytes >= PACKET_BYTES_MAX => bytes,
        (Some(_), _) => {
            return Err(format!("{place}: a rate_kbit needs queue_bytes, at least {PACKET_BYTES_MAX}, one packet"));
        }
        (None, Some(_)) => return Err(format!("{place}: queue_bytes without rate_kbit: nothing would ever wait")),
        (None, None) => u64::MAX,
    };
    Ok(Course {
        delay_ns,
        jitter_ns,
        jitter_reorders: table.jitter_reorders,
        loss: loss(place, table)?,
        reorder_chance: chance(place, "reorder", table.reorder)?,
        reorder_delay_ns: time_ns(place, "reorder_delay_ms", table.reorder_delay_ms)?,
        rate_bits_per_s,
        queue_bytes_max,
        is_blackout: table.blackout,
    })
}

fn loss(place: &str, table: &CourseTable) -> Result<Loss, String> {
    let share = chance(place, "loss", table.loss)?;
    let Some(packets) = table.loss_burst_packets else {
        return match table.loss_in_burst {
            None => Ok(Loss::Independent { chance: share }),
            Some(_) => Err(format!("{place}: loss_in_burst without loss_burst_packets: there are no bursts")),
        };
    };
    if !(1.0..=1e6).contains(&packets) {
        return Err(format!("{place}: loss_burst_packets is {packets}; a bad spell has 1 to 1000000 packets"));
    }
    let inside = chance(place, "loss_in_burst", table.loss_in_burst.unwrap_or(1.0))?;
    // Share of bad spells, and from it how often one must begin.
    let bad = if inside > 0.0 { share / inside } else { f64::INFINITY };
    let leave = 1.0 / packets;
    let enter = leave * bad / (1.0 - bad);
    if !(bad < 1.0 && enter <= 1.0) {
        return Err(format!(
            "{place}: bad spells of {packets} packets with loss_in_burst {inside} cannot give a loss of {share}; \
             make them longer or the loss less"
        ));
    }
    Ok(Loss::Bursts { enter, leave, inside })
}

fn chance(place: &str, name: &str, value: f64) -> Result<f64, String> {
    if (0.0..=1.0).contains(&value) {
        Ok(value)
    } else {
        Err(format!("{place}: {name} is {value}; a chance is 0 to 1"))
    }
}

fn time_ns(place: &str, name: &str, ms: f64) -> Result<u64, String> {
    if (0.0..=TIME_MS_MAX).contains(&ms) {
        Ok((ms * NANOS_PER_MS as f64).round() as u64)
    } else {
        Err(format!("{place}: {name} is {ms}; give 0 to {TIME_MS_MAX} milliseconds"))
    }
}
