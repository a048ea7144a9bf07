//! Credit: the only place that adds and subtracts flow control (MMTP 6).
//!
//! Owns the arithmetic of both directions; never learns why bytes move.
//! Invariant of a receiving window: `available + held + owed == size`.

use super::frame::CREDIT_MAX;

/// More was used or granted than there may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Exceeded;

/// Bytes we may still send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct SendCredit {
    available: u32,
}

impl SendCredit {
    pub(super) fn new(available: u32) -> SendCredit {
        assert!(available <= CREDIT_MAX, "credit from a HELLO is checked when it is read");
        SendCredit { available }
    }

    pub(super) fn available(self) -> usize {
        self.available as usize
    }

    /// Uses credit up. `bytes` is at most what is available.
    pub(super) fn take(&mut self, bytes: usize) {
        assert!(bytes <= self.available(), "what is sent was cut to the credit");
        self.available -= bytes as u32;
    }

    /// The peer granted more.
    pub(super) fn grant(&mut self, bytes: u32) -> Result<(), Exceeded> {
        let available = self.available.checked_add(bytes).filter(|sum| *sum <= CREDIT_MAX).ok_or(Exceeded)?;
        self.available = available;
        Ok(())
    }
}

/// What the peer may send us, and where the rest of its window is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct ReceiveWindow {
    size: u32,
    /// The peer may still send these.
    available: u32,
    /// Arrived, or announced by a frame header; not consumed yet.
    held: u32,
    /// Consumed, not granted again yet.
    owed: u32,
}

impl ReceiveWindow {
    pub(super) fn new(size: u32) -> ReceiveWindow {
        assert!(size <= CREDIT_MAX, "settings are cut to the largest credit");
        ReceiveWindow { size, available: size, held: 0, owed: 0 }
    }

    /// The peer sends so many.
    pub(super) fn arrive(&mut self, bytes: usize) -> Result<(), Exceeded> {
        if bytes > self.available as usize {
            return Err(Exceeded);
        }
        self.available -= bytes as u32;
        self.held += bytes as u32;
        Ok(())
    }

    /// So many of those that arrived were consumed; returns how many that is, at most what is held.
    pub(super) fn consume(&mut self, bytes: usize) -> usize {
        let bytes = bytes.min(self.held as usize);
        self.held -= bytes as u32;
        self.owed += bytes as u32;
        bytes
    }

    /// Arrived and not consumed.
    pub(super) fn held(self) -> usize {
        self.held as usize
    }

    pub(super) fn size(self) -> u32 {
        self.size
    }

    /// Whether enough is owed to be worth a frame: half the window (MMTP 6.3).
    pub(super) fn is_due(self) -> bool {
        self.owed > 0 && self.owed >= self.size / 2
    }

    /// Makes the window larger; what it grows by is owed.
    pub(super) fn grow(&mut self, size: u32) {
        assert!((self.size..=CREDIT_MAX).contains(&size), "a window only grows, up to the largest credit");
        self.owed += size - self.size;
        self.size = size;
    }

    /// Takes what is owed, to be granted now.
    pub(super) fn take_owed(&mut self) -> u32 {
        let owed = core::mem::take(&mut self.owed);
        self.available += owed;
        owed
    }

    #[cfg(test)]
    pub(super) fn is_consistent(self) -> bool {
        u64::from(self.available) + u64::from(self.held) + u64::from(self.owed) == u64::from(self.size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credit_is_never_overdrawn_nor_overfilled() {
        let mut credit = SendCredit::new(10);
        credit.take(10);
        assert_eq!(credit.available(), 0);
        assert_eq!(credit.grant(CREDIT_MAX), Ok(()));
        assert_eq!(credit.grant(1), Err(Exceeded));
        assert_eq!(credit.available(), CREDIT_MAX as usize);
    }

    #[test]
    fn a_window_is_granted_by_halves_and_grows() {
        let mut window = ReceiveWindow::new(100);
        window.arrive(60).unwrap();
        assert_eq!(window.arrive(41), Err(Exceeded));
        assert_eq!(window.consume(49), 49);
        assert!(!window.is_due());
        assert_eq!(window.consume(50), 11);
        assert!(window.is_due());
        window.grow(200);
        assert_eq!(window.take_owed(), 160);
        assert!(window.is_consistent());
        assert_eq!(window.arrive(200), Ok(()));
        assert_eq!(window.held(), 200);
    }
}
