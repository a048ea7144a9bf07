//! The model against its promises, and profiles against mistakes.

use std::path::Path;

use proptest::prelude::*;

use crate::model::{Course, Direction, Fate, Link, Loss, NANOS_PER_MS, NANOS_PER_SECOND, Nanos, PACKETS_IN_FLIGHT_MAX};
use crate::model::{Phase, Plan};
use crate::profile::{Profile, Stretch};

const SIZE: usize = 1000;

fn steady(course: Course) -> Plan {
    Plan { phases: vec![Phase { name: "steady".to_owned(), duration_ns: None, courses: [course, Course::default()] }] }
}

fn delayed(delay_ms: u64) -> Course {
    Course { delay_ns: delay_ms * NANOS_PER_MS, ..Course::default() }
}

/// A packet that carries its number.
fn packet(number: u64, size: usize) -> Vec<u8> {
    let mut packet = number.to_be_bytes().to_vec();
    packet.resize(size.max(8), 0);
    packet
}

/// Offers packets towards the origin, one every `gap_ns`.
fn offer_many(link: &mut Link, count: u64, gap_ns: u64) -> Vec<Fate> {
    (0..count).map(|number| link.offer(number * gap_ns, Direction::ToOrigin, packet(number, SIZE))).collect()
}

/// Takes everything that ever arrives, in the order it does: number and time.
fn arrivals(link: &mut Link) -> Vec<(u64, Nanos)> {
    let mut arrived = Vec::new();
    while let Some((_, due, packet)) = link.deliver(Nanos::MAX) {
        arrived.push((u64::from_be_bytes(packet[..8].try_into().expect("8 bytes")), due));
    }
    arrived
}

fn lost_in(fates: &[Fate]) -> usize {
    fates.iter().filter(|fate| **fate == Fate::Lost).count()
}

// ---- loss ----

#[test]
fn independent_loss_is_the_share_asked_for_and_falls_anywhere() {
    let count = 40_000;
    let course = Course { loss: Loss::Independent { chance: 0.035 }, ..Course::default() };
    let mut link = Link::new(steady(course), 7);
    let fates: Vec<Fate> = (0..count).map(|at| link.offer(at, Direction::ToOrigin, packet(at, SIZE))).collect();
    let lost = lost_in(&fates) as f64;
    // Mean 1400, standard deviation 36.8: four of them.
    assert!((lost - 1400.0).abs() < 148.0, "{lost}");
    let pairs = fates.windows(2).filter(|pair| pair == &[Fate::Lost, Fate::Lost]).count() as f64;
    // As often after a loss as elsewhere: mean 49, standard deviation 7.
    assert!((pairs - 49.0).abs() < 28.0, "{pairs}");
}

#[test]
fn bursts_lose_the_share_asked_for_in_runs_of_the_length_asked_for() {
    let profile = "about = 'bursts'\n[[phase]]\nto_client = {}\nto_origin = { loss = 0.07, loss_burst_packets = 3 }";
    let plan = Profile::parse(profile).expect("it is right").plan(Stretch::PhonePop);
    let mut link = Link::new(plan, 11);
    let fates = offer_many(&mut link, 60_000, 1);
    let lost = lost_in(&fates) as f64;
    // Mean 4200; runs of three on average make the variance (1 + 0.641) / (1 - 0.641) times that of independent losses.
    assert!((lost - 4200.0).abs() < 4.0 * (60_000.0 * 0.07 * 0.93 * 4.58_f64).sqrt(), "{lost}");
    let runs = fates.windows(2).filter(|pair| pair[0] != Fate::Lost && pair[1] == Fate::Lost).count() as f64;
    assert!((lost / runs - 3.0).abs() < 0.3, "{}", lost / runs);
}

#[test]
fn bad_spells_may_lose_only_some() {
    let profile = "about = ''\n[[phase]]\nto_client = {}\n\
                   to_origin = { loss = 0.1, loss_burst_packets = 20, loss_in_burst = 0.5 }";
    let mut link = Link::new(Profile::parse(profile).expect("it is right").plan(Stretch::PhonePop), 5);
    let lost = lost_in(&offer_many(&mut link, 60_000, 1)) as f64 / 60_000.0;
    assert!((lost - 0.1).abs() < 0.02, "{lost}");
}

// ---- delay, order ----

#[test]
fn the_mean_delay_is_what_was_asked_for_however_often_packets_come() {
    for gap_ms in [1, 5, 170] {
        let course = Course { jitter_ns: 40 * NANOS_PER_MS, ..delayed(100) };
        let mut link = Link::new(steady(course), 3);
        let count = 400_000 / gap_ms;
        let delays: Vec<f64> = (0..count)
            .filter_map(|number| {
                let now = number * gap_ms * NANOS_PER_MS;
                let fate = link.offer(now, Direction::ToOrigin, packet(number, SIZE));
                while link.deliver(now).is_some() {}
                match fate {
                    Fate::Due(due) => Some((due - now) as f64 / NANOS_PER_MS as f64),
                    _ => None,
                }
            })
            .collect();
        let mean = delays.iter().sum::<f64>() / delays.len() as f64;
        // 5000 points of the wandering (or 2350 packets), each within 40 ms: the mean's deviation is at most 0.5 ms.
        assert!((mean - 100.0).abs() < 2.0, "{gap_ms}: {mean}");
        assert!(delays.iter().all(|delay| (60.0..=140.0).contains(delay)));
        let spread = delays.iter().map(|delay| (delay - mean).powi(2)).sum::<f64>() / delays.len() as f64;
        assert!(spread.sqrt() > 15.0, "it does stray: {}", spread.sqrt());
    }
}

#[test]
fn packets_overtake_only_if_asked() {
    let jittery = Course { jitter_ns: 10 * NANOS_PER_MS, ..delayed(20) };
    let reordering = Course { reorder_chance: 0.1, reorder_delay_ns: 5 * NANOS_PER_MS, ..delayed(20) };
    let cases =
        [(jittery.clone(), false), (Course { jitter_reorders: true, ..jittery }, true), (reordering.clone(), true)];
    for (course, overtakes) in cases {
        let mut link = Link::new(steady(course.clone()), 9);
        offer_many(&mut link, 5000, NANOS_PER_MS / 2);
        let arrived = arrivals(&mut link);
        assert_eq!(arrived.len(), 5000);
        let overtaken = arrived.windows(2).filter(|pair| pair[0].0 > pair[1].0).count();
        assert_eq!(overtaken > 0, overtakes, "{course:?}: {overtaken}");
        if course == reordering {
            // One in ten is held back while ten others pass: 500, standard deviation 21.
            let late =
                arrived.iter().filter(|(number, due)| due - number * NANOS_PER_MS / 2 > 20 * NANOS_PER_MS).count();
            assert!((416..=584).contains(&late), "{late}");
        }
    }
}

// ---- rate and queue ----

#[test]
fn a_flow_above_the_rate_gets_exactly_the_rate() {
    let course = Course { rate_bits_per_s: Some(8_000_000), queue_bytes_max: 50_000, ..delayed(5) };
    let mut link = Link::new(steady(course), 1);
    // 16 Mbit/s for two seconds.
    let fates = offer_many(&mut link, 4000, NANOS_PER_MS / 2);
    assert!(fates.contains(&Fate::QueueFull));
    let arrived = arrivals(&mut link);
    let span_ns = arrived[arrived.len() - 1].1 - arrived[0].1;
    assert_eq!(span_ns, (arrived.len() as u64 - 1) * NANOS_PER_MS, "a packet of 1000 bytes takes 1 ms");
    assert!(arrived.len() >= 2000);
}

#[test]
fn the_queue_holds_its_bytes_and_no_more() {
    let course = Course { rate_bits_per_s: Some(8_000_000), queue_bytes_max: 10_000, ..Course::default() };
    let mut link = Link::new(steady(course), 1);
    let at_once = |link: &mut Link, now: Nanos, count: u64| {
        let fates = (0..count).map(|number| link.offer(now, Direction::ToOrigin, packet(number, SIZE)));
        fates.filter(|fate| matches!(fate, Fate::Due(_))).count()
    };
    assert_eq!(at_once(&mut link, 0, 20), 10, "ten of 1000 bytes fit");
    assert_eq!(link.counts()[0].queue_full, 10);
    assert_eq!(at_once(&mut link, 3 * NANOS_PER_MS, 20), 3, "three have left in 3 ms");
    assert_eq!(link.offer(0, Direction::ToClient, packet(0, SIZE)), Fate::Due(0), "the other way is not concerned");
    link.offer(3 * NANOS_PER_MS, Direction::ToOrigin, packet(0, 8));
    assert_eq!(link.counts()[0].queue_full, 28, "nor does a small one fit where none does");
}

#[test]
fn packets_under_way_are_bounded() {
    let mut link = Link::new(steady(delayed(1000)), 1);
    let fates = offer_many(&mut link, PACKETS_IN_FLIGHT_MAX as u64 + 3, 1);
    assert!(matches!(fates[PACKETS_IN_FLIGHT_MAX - 1], Fate::Due(_)));
    assert!(fates[PACKETS_IN_FLIGHT_MAX..].iter().all(|fate| *fate == Fate::TooMany));
    assert_eq!(link.counts()[0].too_many, 3);
    assert_eq!(arrivals(&mut link).len(), PACKETS_IN_FLIGHT_MAX);
}

// ---- phases ----

/// Good for 100 ms, dark for 50 ms, slow until the end or (with a duration) round again.
fn changing(last_ns: Option<u64>) -> Plan {
    let dark = Course { is_blackout: true, ..Course::default() };
    let phase = |duration_ns, course: Course| Phase {
        name: String::new(),
        duration_ns,
        courses: [course.clone(), Course { is_blackout: false, ..course }],
    };
    Plan {
        phases: vec![
            phase(Some(100 * NANOS_PER_MS), delayed(10)),
            phase(Some(50 * NANOS_PER_MS), dark),
            phase(last_ns, delayed(30)),
        ],
    }
}

#[test]
fn a_blackout_drops_what_enters_and_what_would_arrive() {
    let mut link = Link::new(changing(None), 1);
    let fates = offer_many(&mut link, 200, NANOS_PER_MS);
    assert_eq!(fates[99], Fate::Due(109 * NANOS_PER_MS), "it sets out, but will not arrive");
    assert!(fates[100..150].iter().all(|fate| *fate == Fate::Blackout));
    assert_eq!(fates[150], Fate::Due(180 * NANOS_PER_MS));
    let arrived: Vec<u64> = arrivals(&mut link).into_iter().map(|(number, _)| number).collect();
    assert_eq!(arrived, (0..90).chain(150..200).collect::<Vec<u64>>());
    assert_eq!(link.counts()[0].blackout, 60);
    let other_way = link.offer(120 * NANOS_PER_MS, Direction::ToClient, packet(0, SIZE));
    assert_eq!(other_way, Fate::Due(120 * NANOS_PER_MS), "directions are apart");
}

#[test]
fn phases_come_round_again_unless_the_last_one_stays() {
    let (once, again) = (changing(None), changing(Some(50 * NANOS_PER_MS)));
    let number_at = |plan: &Plan, ms: u64| plan.phase_at(ms * NANOS_PER_MS).0;
    assert_eq!([0, 99, 100, 149, 150, 9999].map(|ms| number_at(&once, ms)), [0, 0, 1, 1, 2, 2]);
    assert_eq!([0, 100, 150, 199, 200, 299, 300, 400].map(|ms| number_at(&again, ms)), [0, 1, 2, 2, 3, 3, 4, 6]);
    assert_eq!(again.phase_at(350 * NANOS_PER_MS).1.courses[0], delayed(30));
}

#[test]
fn a_new_path_begins_with_an_empty_queue() {
    let slow = Course { rate_bits_per_s: Some(8_000), queue_bytes_max: 100_000, ..Course::default() };
    let mut plan = changing(None);
    plan.phases[0].courses[0] = slow;
    let mut link = Link::new(plan, 1);
    for number in 0..20 {
        link.offer(0, Direction::ToOrigin, packet(number, SIZE));
    }
    let fate = link.offer(200 * NANOS_PER_MS, Direction::ToOrigin, packet(20, SIZE));
    assert_eq!(fate, Fate::Due(230 * NANOS_PER_MS), "as if nothing had been sent before");
    let arrived: Vec<u64> = arrivals(&mut link).into_iter().map(|(number, _)| number).collect();
    assert_eq!(arrived[0], 20, "it overtakes what the old path still carries");
    assert_eq!(arrived[1..], (0..20).collect::<Vec<u64>>());
}

// ---- properties ----

fn any_course() -> impl Strategy<Value = Course> {
    let rate = prop_oneof![Just(None), (10_000_u64..1_000_000_000).prop_map(Some)];
    let loss = prop_oneof![
        (0.0..1.0).prop_map(|chance| Loss::Independent { chance }),
        (0.0..1.0, 0.01..1.0, 0.0..1.0).prop_map(|(enter, leave, inside)| Loss::Bursts { enter, leave, inside }),
    ];
    (0..500 * NANOS_PER_MS, 0.0..1.0, rate, 1500_u64..200_000, loss).prop_map(
        |(delay_ns, jitter, rate_bits_per_s, queue_bytes_max, loss)| Course {
            delay_ns,
            jitter_ns: (delay_ns as f64 * jitter) as u64,
            loss,
            rate_bits_per_s,
            queue_bytes_max,
            ..Course::default()
        },
    )
}

proptest! {
    /// Whatever a course asks for: every packet is accounted for, order holds, no two leave closer than the rate allows, and
    /// none waits longer than a full queue.
    #[test]
    fn order_rate_and_queue_hold(
        course in any_course(), seed: u64, packets in prop::collection::vec((0..20 * NANOS_PER_MS, 20_usize..1500), 1..300)
    ) {
        let mut link = Link::new(steady(course.clone()), seed);
        let (mut now, mut dues) = (0, Vec::new());
        for (number, (gap_ns, size)) in packets.iter().enumerate() {
            now += gap_ns;
            if let Fate::Due(due) = link.offer(now, Direction::ToOrigin, packet(number as u64, *size)) {
                dues.push((now, due, *size));
            }
        }
        for pair in dues.windows(2) {
            prop_assert!(pair[0].1 + course.sending_ns(pair[1].2) <= pair[1].1);
        }
        if let Some(rate) = course.rate_bits_per_s {
            let full_ns = course.queue_bytes_max as u128 * 8 * u128::from(NANOS_PER_SECOND) / u128::from(rate);
            // Roundings of a nanosecond per packet.
            let waited_max = full_ns as u64 + packets.len() as u64;
            for (came, due, _) in &dues {
                prop_assert!(due - came <= course.delay_ns + course.jitter_ns + waited_max);
            }
        }
        let arrived = arrivals(&mut link);
        prop_assert!(arrived.windows(2).all(|pair| pair[0].0 < pair[1].0));
        let counts = link.counts()[0];
        prop_assert_eq!(counts.delivered, dues.len() as u64);
        prop_assert_eq!(counts.offered, counts.delivered + counts.lost + counts.queue_full);
    }

    /// Chance follows from the seed and the number of the packet alone: not from when packets come, nor what goes the other way.
    #[test]
    fn a_seed_gives_its_fates(course in any_course(), seed: u64, gaps in prop::collection::vec(1..NANOS_PER_SECOND, 100)) {
        let course = Course { rate_bits_per_s: None, ..course };
        let mut plain = Link::new(steady(course.clone()), seed);
        let mut other = Link::new(steady(course), seed);
        let mut now = 0;
        for (number, gap_ns) in gaps.into_iter().enumerate() {
            now += gap_ns;
            other.offer(now, Direction::ToClient, packet(0, 40));
            let here = plain.offer(number as u64, Direction::ToOrigin, packet(0, SIZE));
            let there = other.offer(now, Direction::ToOrigin, packet(0, SIZE));
            prop_assert_eq!(here == Fate::Lost, there == Fate::Lost);
        }
    }
}

#[test]
fn the_same_seed_and_times_give_the_same_arrivals_and_another_seed_others() {
    let course = Course { jitter_ns: 10 * NANOS_PER_MS, loss: Loss::Independent { chance: 0.2 }, ..delayed(20) };
    let run = |seed| {
        let mut link = Link::new(steady(course.clone()), seed);
        offer_many(&mut link, 500, NANOS_PER_MS);
        arrivals(&mut link)
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2));
}

// ---- profiles ----

#[test]
fn every_profile_is_right_and_has_the_figures_of_the_design() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/link/profiles");
    let rtt_ms = |profile: &Profile, stretch, phase: usize| {
        let plan = profile.plan(stretch);
        plan.phases[phase].courses.iter().map(|course| course.delay_ns as f64).sum::<f64>() / NANOS_PER_MS as f64
    };
    let expected = [
        ("clean", 0.0, 0.0),
        ("good", 20.0, 0.0),
        ("p50", 350.0, 0.035),
        ("p75", 425.0, 0.035),
        ("p95", 725.0, 0.035),
        ("p99", 2300.0, 0.035),
        ("congested", 350.0, 0.07),
        ("switch", 20.0, 0.0),
    ];
    for (name, rtt, loss) in expected {
        let profile = Profile::read(&folder.join(format!("{name}.toml"))).expect("it is right");
        assert!(!profile.about.is_empty());
        assert_eq!(rtt_ms(&profile, Stretch::PhonePop, 0), rtt, "{name}");
        let far = if name == "clean" { 0.0 } else { 150.0 };
        assert_eq!(rtt_ms(&profile, Stretch::PopDc, 0), far, "{name}");
        assert_eq!(rtt_ms(&profile, Stretch::PhoneDc, 0), rtt + far, "{name}");
        for stretch in [Stretch::PhonePop, Stretch::PhoneDc] {
            for course in &profile.plan(stretch).phases[0].courses {
                let share = match course.loss {
                    Loss::Independent { chance } => chance,
                    Loss::Bursts { enter, leave, inside } => inside * enter / (enter + leave),
                };
                assert!((share - loss).abs() < 1e-9, "{name}: {share}");
            }
        }
        for course in &profile.plan(Stretch::PopDc).phases[0].courses {
            assert_eq!(course.loss, Loss::Independent { chance: 0.0 }, "{name}");
        }
    }
    let entries = std::fs::read_dir(folder).expect("it is there").count();
    assert_eq!(entries, expected.len(), "a profile that this test does not know");
}

#[test]
fn a_mistake_in_a_profile_is_named_with_its_place() {
    let with = |courses: &str| format!("about = ''\n[[phase]]\nto_client = {{}}\n{courses}");
    let cases = [
        ("about = ''\nphase = []".to_owned(), "it has 0 tables [[phase]]"),
        (with("to_origin = { loss = 1.5 }"), "phase 1, to_origin: loss is 1.5"),
        (with("to_origin = { loss = nan }"), "phase 1, to_origin: loss is NaN"),
        (with("to_origin = { delay_ms = -1 }"), "phase 1, to_origin: delay_ms is -1"),
        (with("to_origin = { delay_ms = inf }"), "phase 1, to_origin: delay_ms is inf"),
        (with("to_origin = { delay_ms = 1, jitter_ms = 2 }"), "jitter_ms is above delay_ms"),
        (with("to_origin = { rate_kbit = 0, queue_bytes = 3000 }"), "rate_kbit is 0"),
        (with("to_origin = { rate_kbit = 100 }"), "a rate_kbit needs queue_bytes"),
        (with("to_origin = { rate_kbit = 100, queue_bytes = 1499 }"), "at least 1500"),
        (with("to_origin = { queue_bytes = 3000 }"), "queue_bytes without rate_kbit"),
        (with("to_origin = { loss_in_burst = 0.5 }"), "there are no bursts"),
        (with("to_origin = { loss = 0.9, loss_burst_packets = 2 }"), "make them longer or the loss less"),
        (with("to_origin = { loss = 0.5, loss_burst_packets = 2, loss_in_burst = 0 }"), "make them longer"),
        (with("to_origin = { loss_burst_packets = 0.5 }"), "loss_burst_packets is 0.5"),
        (with("to_origin = { latency = 5 }"), "unknown field `latency`"),
        (with("duration_ms = 0\nto_origin = {}"), "phase 1: duration_ms is 0"),
        (with("to_origin = {}\n[[phase]]\nto_origin = {}\nto_client = {}"), "phase 1: only the last phase may last"),
        (with("to_origin = {}\n[pop_dc]\nto_origin = { loss = 2 }\nto_client = {}"), "pop_dc.to_origin: loss is 2"),
    ];
    for (text, expected) in cases {
        let error = Profile::parse(&text).expect_err(&text);
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
    }
}
