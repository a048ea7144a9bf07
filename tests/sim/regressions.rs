//! What seeds have found, each as a small world of its own, played under a number of seeds.

use std::time::Duration;

use trunkline::mmtp::{Code, Receipt};

use crate::check;
use crate::doorman::Handshake;
use crate::plan::{Event, Guest, Scenario};
use crate::truth::{Mode, Outcome, Plan, Service};
use crate::world::World;

fn at_ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// A retiring link was cut after the linger timeout although its peer, who read slowly, was still owed bytes.
#[test]
fn a_slow_reader_gets_the_tail_of_a_tunnel() {
    for seed in 0..30 {
        let plan = Plan::new(Service::Tunnel, Mode::EarlyEnd, "CONNECT", 100, 150_000);
        let guest = Guest { deaf: Some((at_ms(300), at_ms(4300))), ..Guest::new(vec![(at_ms(200), plan)]) };
        let mut scenario = Scenario::with_guests(seed, vec![guest]);
        scenario.weather.latency_max = at_ms(5);
        check(&scenario);
    }
}

/// An orderly end of a tunnel that was never served looked like a whole, empty answer.
#[test]
fn a_tunnel_that_comes_to_a_draining_pop_is_reset() {
    for seed in 0..30 {
        let tunnel = |at| Guest::new(vec![(at, Plan::new(Service::Tunnel, Mode::Echo, "CONNECT", 500, 0))]);
        let slow = Guest::new(vec![(at_ms(100), Plan::new(Service::Http, Mode::Slow, "GET", 0, 5000))]);
        let mut scenario = Scenario::with_guests(seed, vec![slow, tunnel(at_ms(195)), tunnel(at_ms(199))]);
        scenario.events = vec![(at_ms(200), Event::PopDrains)];
        scenario.weather.latency_max = at_ms(10);
        check(&scenario);
    }
}

/// A request that was moved from a dead connection and found no other was called refused, as if nobody had read it.
#[test]
fn a_request_that_may_have_been_read_is_not_called_refused() {
    for seed in 0..60 {
        let call = |at: u64| (at_ms(200 + at * 97), Plan::new(Service::Http, Mode::Stale, "GET", 0, 20));
        let mut scenario = Scenario::with_guests(seed, vec![Guest::new((0..30).map(call).collect())]);
        scenario.is_clear = false;
        scenario.weather.connect_failure = 2;
        scenario.weather.latency_max = at_ms(40);
        scenario.weather.reset = 60;
        check(&scenario);
    }
}

/// Streams that found every trunk at its limit waited for a new trunk instead of for room, and failed.
#[test]
fn streams_beyond_the_limit_of_a_trunk_wait_for_room() {
    for seed in 0..20 {
        let call = || (at_ms(300), Plan::new(Service::Http, Mode::Slow, "GET", 0, 8));
        // Two rounds of eight, within the time that a stream waits for a trunk.
        let mut scenario = Scenario::with_guests(seed, (0..3).map(|_| Guest::new(vec![call(); 5])).collect());
        scenario.trunk_streams_max = 8;
        scenario.weather.latency_max = at_ms(5);
        check(&scenario);
    }
}

/// A client that had its answer and left before its trunk had taken the request left its stream behind.
#[test]
fn a_client_that_leaves_with_its_answer_leaves_nothing_behind() {
    for seed in 0..40 {
        let call = || (at_ms(300), Plan::new(Service::Http, Mode::Early, "POST", 60_000, 200));
        let mut scenario = Scenario::with_guests(seed, vec![Guest::new(vec![call()]), Guest::new(vec![call(); 3])]);
        scenario.trunk_stream_credit = 16 * 1024;
        scenario.weather.sliver = 2;
        check(&scenario);
    }
}

/// When a short send brought a buffer below its mark, its role was not told of the room.
#[test]
fn a_short_send_tells_of_room() {
    for seed in 0..20 {
        let plan = Plan::new(Service::Tunnel, Mode::EarlyEnd, "CONNECT", 100, 400_000);
        let guest = Guest { deaf: Some((at_ms(300), at_ms(1000))), ..Guest::new(vec![(at_ms(200), plan)]) };
        let mut scenario = Scenario::with_guests(seed, vec![guest]);
        scenario.trunk_stream_credit = 256 * 1024;
        scenario.weather.short_send = 3;
        scenario.weather.sliver = 2;
        scenario.weather.latency_max = at_ms(5);
        check(&scenario);
    }
}

/// A stream remembered its trunk by index: when its client left after a redial, the stream of the same id on the new
/// connection was reset instead, which was somebody else's.
#[test]
fn a_stream_of_a_trunk_that_is_gone_touches_nothing_on_the_next() {
    for seed in 0..20 {
        let stuck = Guest {
            stingy_until: Some(at_ms(9000)),
            leaves: Some((at_ms(1600), true)),
            ..Guest::new(vec![(at_ms(200), Plan::new(Service::Http, Mode::Length, "GET", 0, 200_000))])
        };
        let other = Guest::new(vec![(at_ms(1100), Plan::new(Service::Http, Mode::Slow, "GET", 0, 3000)); 2]);
        let mut scenario = Scenario::with_guests(seed, vec![stuck, other]);
        scenario.trunks_per_gateway = 1;
        scenario.trunk_stream_credit = 256 * 1024;
        scenario.weather.latency_max = at_ms(5);
        scenario.is_clear = false;
        scenario.events = vec![(at_ms(800), Event::GatewayDies { index: 0, back_after: at_ms(50) })];
        check(&scenario);
    }
}

/// [M 2.5-4], [M 2.5-5]: what came early and met a 425 has its answer after the handshake, and a 425 to what did not is
/// passed on.
#[test]
fn what_is_too_early_for_an_origin_is_answered_after_the_handshake() {
    for (seed, mode) in (0..40).zip([Mode::TooEarly, Mode::Always425].into_iter().cycle()) {
        let call = |at: u64, response_bytes| {
            let plan = Plan::new(Service::Http, mode, "GET", 0, response_bytes);
            (at_ms(200 + at * 13), Plan { replay_safe: true, ..plan })
        };
        let calls = vec![call(0, 300), call(0, 5000), call(1, 0), call(2, 40)];
        let after = [1, 20, 150, 700][seed as usize % 4];
        let guest = Guest { handshake: Handshake::After(at_ms(after)), ..Guest::new(calls) };
        let scenario = Scenario::with_guests(seed, vec![guest]);
        check(&scenario);
        let mut world = World::new(scenario, false);
        world.run();
        let truth = world.truth.borrow();
        assert!(truth.calls.iter().all(|call| call.outcome == Some(Outcome::Done)), "{:?}", truth.calls);
        let early = truth.calls.iter().filter(|call| call.went_early).count() as u64;
        let repeated: u64 = world.final_counters.iter().map(|counters| counters.streams_early_repeated).sum();
        assert_eq!(early, repeated, "each that went early went again (seed {seed})");
    }
}

/// [M 2.5-1]: who asks for more in early data than is held is told so, and what is held is served.
#[test]
fn more_early_streams_than_are_held_are_refused() {
    for seed in 0..10 {
        let call = || (at_ms(200), Plan::new(Service::Http, Mode::Length, "POST", 0, 100));
        let guest = Guest { handshake: Handshake::After(at_ms(800)), ..Guest::new(vec![call(); 40]) };
        let mut scenario = Scenario::with_guests(seed, vec![guest]);
        scenario.is_clear = false;
        scenario.weather.latency_max = at_ms(5);
        let mut world = World::new(scenario, false);
        world.run();
        let truth = world.truth.borrow();
        let refused = |call: &&crate::truth::Call| {
            matches!(call.outcome, Some(Outcome::Failed { code: Code::OVERLOADED, receipt: Receipt::Refused }))
        };
        let done = truth.calls.iter().filter(|call| call.outcome == Some(Outcome::Done)).count();
        assert_eq!((done, truth.calls.iter().filter(refused).count()), (16, 24), "seed {seed}");
    }
}

/// Bytes that may lie between three origins and a client that does not read, for the three answers together: per answer the
/// origin's socket, what the gateway queues and the trunk's window; and once the send buffers and sockets of both hops.
const BETWEEN_BYTES_MAX: usize = 3 * (64 + 80 + 256) * 1024 + 2 * (256 + 64) * 1024 + 128 * 1024;

/// Whoever stops reading, or gives no credit, fills what was granted to him and holds nobody else back.
#[test]
fn a_client_that_stops_reading_is_bounded_and_alone() {
    for seed in 0..8 {
        let download = || (at_ms(200), Plan::new(Service::Http, Mode::Length, "GET", 0, 1_200_000));
        let quick = |at: u64| (at_ms(500 + at * 40), Plan::new(Service::Http, Mode::Length, "POST", 300, 3000));
        let mut stuck = Guest::new(vec![download(); 3]);
        if seed % 2 == 0 {
            stuck.deaf = Some((at_ms(250), at_ms(3500)));
        } else {
            stuck.stingy_until = Some(at_ms(3500));
        }
        let lively = Guest::new((0..40).map(quick).collect());
        let mut scenario = Scenario::with_guests(seed, vec![stuck, lively]);
        scenario.buffers = (64, 16 * 1024);
        scenario.weather.sliver = 0;
        scenario.weather.latency_max = at_ms(4);
        let mut world = World::new(scenario, false);
        let until = world.net.borrow().now + at_ms(3400);
        world.run_until(until, |_| false);
        {
            let truth = world.truth.borrow();
            let between: usize = truth.calls[..3].iter().map(|call| call.origin_sent - call.client_read).sum();
            assert!(
                between <= BETWEEN_BYTES_MAX,
                "memory_bounded: {between} bytes for a client that does not read ({seed})"
            );
            let waiting = truth.calls[3..].iter().filter(|call| call.outcome != Some(Outcome::Done)).count();
            assert_eq!(waiting, 0, "others_make_progress: beside a client that does not read (seed {seed})");
        }
        world.run();
    }
}
