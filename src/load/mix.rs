//! Which priority each request gets: weights, and a draw by them.
//!
//! Owns the reading of `0:1,7:9`. Never decides how often requests start. Invariant: a mix has at least one priority of
//! weight above zero, and none above [`PRIORITY_MAX`].

use std::fmt;
use std::str::FromStr;

use crate::base::prng::Prng;
use crate::mmtp::frame::{PRIORITY_DEFAULT, PRIORITY_MAX};

/// Priorities there are.
pub const PRIORITIES: usize = PRIORITY_MAX as usize + 1;

/// Largest weight: more says nothing that a smaller ratio would not.
pub const WEIGHT_MAX: u32 = 1_000_000;

/// Weights of priorities.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mix {
    weights: [u32; PRIORITIES],
    total: u64,
}

/// Why a text is no mix.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MixError {
    /// A part is not `PRIORITY:WEIGHT`.
    Part(String),
    /// A priority above [`PRIORITY_MAX`], or no number.
    Priority(String),
    /// A weight above `WEIGHT_MAX`, or no number.
    Weight(String),
    /// A priority stands twice.
    Twice(u8),
    /// All weights are zero.
    Empty,
}

impl fmt::Display for MixError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MixError::Part(part) => write!(out, "'{part}' is not PRIORITY:WEIGHT, such as 0:1,7:9"),
            MixError::Priority(text) => write!(out, "'{text}' is no priority: 0 (urgent) to {PRIORITY_MAX}"),
            MixError::Weight(text) => write!(out, "'{text}' is no weight: a whole number up to {WEIGHT_MAX}"),
            MixError::Twice(priority) => write!(out, "priority {priority} stands twice"),
            MixError::Empty => out.write_str("no priority has a weight above 0"),
        }
    }
}

impl std::error::Error for MixError {}

impl Default for Mix {
    /// Every request at the default priority.
    fn default() -> Mix {
        let mut weights = [0; PRIORITIES];
        weights[usize::from(PRIORITY_DEFAULT)] = 1;
        Mix { weights, total: 1 }
    }
}

impl FromStr for Mix {
    type Err = MixError;

    fn from_str(text: &str) -> Result<Mix, MixError> {
        let mut weights = [None; PRIORITIES];
        for part in text.split(',') {
            let (priority, weight) = part.split_once(':').ok_or_else(|| MixError::Part(part.to_owned()))?;
            let number: u8 = priority.parse().map_err(|_| MixError::Priority(priority.to_owned()))?;
            let slot = weights.get_mut(usize::from(number)).ok_or_else(|| MixError::Priority(priority.to_owned()))?;
            let weight = weight
                .parse()
                .ok()
                .filter(|weight| *weight <= WEIGHT_MAX)
                .ok_or_else(|| MixError::Weight(weight.to_owned()))?;
            if slot.replace(weight).is_some() {
                return Err(MixError::Twice(number));
            }
        }
        let weights = weights.map(Option::unwrap_or_default);
        let total = weights.iter().copied().map(u64::from).sum();
        if total == 0 { Err(MixError::Empty) } else { Ok(Mix { weights, total }) }
    }
}

impl Mix {
    /// The priorities that may be drawn, most urgent first.
    pub fn priorities(&self) -> impl Iterator<Item = u8> {
        (0..).zip(&self.weights).filter(|(_, weight)| **weight > 0).map(|(priority, _)| priority)
    }

    /// Draws one.
    pub fn draw(&self, prng: &mut Prng) -> u8 {
        let mut at = prng.below(self.total);
        for (priority, weight) in (0..).zip(&self.weights) {
            match at.checked_sub(u64::from(*weight)) {
                Some(rest) => at = rest,
                None => return priority,
            }
        }
        unreachable!("what is drawn is below the sum of the weights")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_read_and_kept_to() {
        let mix: Mix = "0:1,7:9".parse().expect("valid");
        assert_eq!(mix.priorities().collect::<Vec<_>>(), [0, 7]);
        let mut prng = Prng::new(1);
        let urgent = (0..10_000).filter(|_| mix.draw(&mut prng) == 0).count();
        assert!((800..1200).contains(&urgent), "{urgent} of 10000 at a weight of a tenth");
        let mix: Mix = "3:0,5:2".parse().expect("valid");
        assert!((0..100).all(|_| mix.draw(&mut prng) == 5));
        assert!((0..100).all(|_| Mix::default().draw(&mut prng) == PRIORITY_DEFAULT));
    }

    #[test]
    fn what_is_no_mix_is_refused_with_its_reason() {
        for (text, error) in [
            ("", MixError::Part(String::new())),
            ("0", MixError::Part("0".into())),
            ("0:1,", MixError::Part(String::new())),
            ("8:1", MixError::Priority("8".into())),
            ("-1:1", MixError::Priority("-1".into())),
            ("0:x", MixError::Weight("x".into())),
            ("0:1000001", MixError::Weight("1000001".into())),
            ("0:1,0:2", MixError::Twice(0)),
            ("0:0,1:0", MixError::Empty),
        ] {
            assert_eq!(text.parse::<Mix>(), Err(error.clone()), "{text}");
            assert!(!error.to_string().is_empty());
        }
    }
}
