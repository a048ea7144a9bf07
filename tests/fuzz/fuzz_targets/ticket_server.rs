//! A store of tickets on the network that says anything at any time: no panic, every lookup that was taken ends exactly
//! once and by its deadline, nothing is taken while the server is down, and what is held stays bounded.
#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use trunkline::base::slab::Key;
use trunkline::base::time::Time;
use trunkline::tickets::remote::{Answer, Event, REQUEST_BYTES_MAX, REQUESTS_MAX, Remote, RemoteSettings};
use trunkline::tickets::seal::SEALED_BYTES_MAX;

const LOOKUP_TIMEOUT: Duration = Duration::from_millis(25);

/// The greeting beyond what is in flight otherwise.
const GREETING_BYTES_MAX: usize = 256;

fn remote() -> Remote {
    let settings = RemoteSettings {
        server: ([127, 0, 0, 1], 6379).into(),
        user: "user".to_owned(),
        password: "password".to_owned().into(),
        database: 1,
        lookup_timeout: LOOKUP_TIMEOUT,
        lifetime: Duration::from_secs(60),
    };
    Remote::new(settings, 1)
}

/// Lookups that were taken: until when each must have ended, and whether it has.
#[derive(Default)]
struct Lookups(Vec<(Time, bool)>);

impl Lookups {
    fn ended(&mut self, asker: Key, answer: &Answer) {
        let (_, has_ended) = &mut self.0[asker.index as usize];
        assert!(!*has_ended, "a second answer");
        *has_ended = true;
        if let Answer::Hit(sealed) = answer {
            assert!(sealed.len() <= SEALED_BYTES_MAX);
        }
    }

    fn check(&self, now: Time) {
        assert!(self.0.iter().all(|(until, has_ended)| *has_ended || *until > now), "a lookup without an answer");
        assert!(self.0.iter().filter(|(_, has_ended)| !has_ended).count() <= REQUESTS_MAX);
    }
}

// A step is a byte that says what, one that says when, and for replies their length and bytes.
fuzz_target!(|input: &[u8]| {
    let (mut remote, mut lookups, mut now, mut rest) = (remote(), Lookups::default(), Time::ZERO, input);
    while let [what, wait, tail @ ..] = rest {
        rest = tail;
        now = now + Duration::from_millis(u64::from(wait % 64));
        match what % 8 {
            0 => remote.connected(now),
            1 => remote.broken(now),
            2 => {
                let asker = Key { index: lookups.0.len() as u32, generation: 0 };
                let was_up = remote.is_up();
                if remote.lookup(now, asker, &[*wait; 32]) {
                    assert!(was_up);
                    lookups.0.push((now + LOOKUP_TIMEOUT, false));
                }
            }
            3 => {
                let sealed = vec![*wait; usize::from(*what) * 10];
                assert!(!remote.store(now, &[*wait; 32], &sealed) || remote.is_up());
            }
            _ => {
                let length = usize::from(*what >> 3).min(rest.len());
                let (said, tail) = rest.split_at(length);
                rest = tail;
                remote.received(now, said);
            }
        }
        remote.tick(now);
        while let Some(event) = remote.event() {
            if let Event::Answer(asker, answer) = event {
                lookups.ended(asker, &answer);
            }
        }
        lookups.check(now);
        assert!(remote.due().is_none_or(|due| due > now));
        let mut sent = Vec::new();
        remote.drain(&mut sent);
        assert!(sent.len() <= REQUEST_BYTES_MAX + GREETING_BYTES_MAX);
    }
});
