//! Settings of a ring, and what to tell an operator whose kernel refuses one.

use super::op::Errno;

/// How large a ring is made.
#[derive(Clone, Copy, Debug)]
pub struct RingSettings {
    /// Slots of the submission queue; a full queue is submitted early, so this is about batching only.
    pub submissions: u32,
    /// Slots of the completion queue. What does not fit is kept by the kernel and costs an allocation there.
    pub completions: u32,
    /// Receive buffers: a power of two, at most 32768.
    pub buffers: u16,
    /// Bytes of one receive buffer.
    pub buffer_bytes: u32,
    /// Under load, how long a wait may last at most to return a fuller batch, in microseconds, if the caller has patience;
    /// 0 never waits for more than one completion. A pass costs much the same whatever it carries, so fuller passes cost
    /// less per request. No wait is prolonged for a request alone. Needs Linux 6.12; older kernels behave as with 0.
    pub batch_wait_us: u32,
}

impl Default for RingSettings {
    /// 4096 submissions, 16384 completions, 512 buffers of 64 KiB, and at most 4 milliseconds to fill a batch. Only what was
    /// used of a buffer is memory, but all are used in turn at first and after they ran out: 2 MiB with small messages, 32 MiB
    /// once large ones have come. They are not given back.
    fn default() -> Self {
        RingSettings {
            submissions: 4096,
            completions: 16_384,
            buffers: 512,
            buffer_bytes: 64 * 1024,
            batch_wait_us: 4000,
        }
    }
}

/// Why there is no ring, or why it cannot go on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RingError {
    /// The kernel refused to set one up.
    Refused {
        /// Which step failed.
        step: &'static str,
        /// With which error.
        errno: Errno,
        /// `kernel.io_uring_disabled`, if the file was there.
        disabled: Option<u8>,
        /// The kernel's release, as uname gives it.
        release: String,
    },
    /// Waiting failed.
    Broken(Errno),
}

impl RingError {
    pub(super) fn refused(step: &'static str, error: std::io::Error) -> RingError {
        let disabled = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled")
            .ok()
            .and_then(|text| text.trim().parse().ok());
        let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
        RingError::Refused { step, errno: error.into(), disabled, release }
    }
}

impl core::fmt::Display for RingError {
    fn fmt(&self, formatter: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            RingError::Refused { step, errno, disabled, release } => {
                write!(formatter, "this kernel ({release}) refused io_uring at '{step}': {errno}. ")?;
                formatter.write_str(remedy(*errno, *disabled))
            }
            RingError::Broken(errno) => write!(formatter, "io_uring_enter failed: {errno}"),
        }
    }
}

impl std::error::Error for RingError {}

fn remedy(errno: Errno, disabled: Option<u8>) -> &'static str {
    match (errno.0, disabled) {
        (libc::EPERM, Some(2)) => {
            "io_uring is switched off for everyone. Remedy: sysctl -w kernel.io_uring_disabled=0 (or 1, and run with \
             CAP_SYS_ADMIN or in the group of kernel.io_uring_group)."
        }
        (libc::EPERM, Some(1)) => {
            "io_uring is switched off for unprivileged processes. Remedy: sysctl -w kernel.io_uring_disabled=0, or put \
             this user in the group named by kernel.io_uring_group."
        }
        (libc::EPERM | libc::EACCES, _) => {
            "The sysctl allows it, so a seccomp filter most likely forbids it, as container runtimes do by default. \
             Remedy: allow io_uring_setup, io_uring_enter and io_uring_register in the seccomp profile (docker: \
             --security-opt seccomp=profile.json), or run outside the container."
        }
        (libc::ENOSYS, _) => {
            "The kernel has no io_uring (or a sandbox hides it). Remedy: Linux 6.1 or newer with CONFIG_IO_URING, \
             outside gVisor-like sandboxes."
        }
        (libc::EINVAL | libc::EOPNOTSUPP, _) => {
            "The kernel is too old for what is needed (multishot receive, provided buffer rings, deferred task work). \
             Remedy: Linux 6.1 or newer."
        }
        (libc::ENOMEM, _) => {
            "Memory for the ring could not be had or locked. Remedy: raise the memory limit of the service, and \
             RLIMIT_MEMLOCK: about 1 MiB a worker, on all processes of the user together."
        }
        (libc::EMFILE | libc::ENFILE, _) => "No descriptor is left. Remedy: raise RLIMIT_NOFILE.",
        _ => "Remedy: check the kernel's log; Trunkline needs Linux 6.1 or newer with io_uring allowed.",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_cause_and_remedy() {
        for (errno, disabled, expected) in [
            (libc::EPERM, Some(2), "kernel.io_uring_disabled=0"),
            (libc::EPERM, Some(1), "kernel.io_uring_group"),
            (libc::EPERM, Some(0), "seccomp"),
            (libc::EPERM, None, "seccomp"),
            (libc::ENOSYS, None, "Linux 6.1"),
            (libc::EINVAL, None, "too old"),
            (libc::ENOMEM, None, "RLIMIT_MEMLOCK"),
        ] {
            let error = RingError::Refused {
                step: "io_uring_setup",
                errno: Errno(errno),
                disabled,
                release: "6.0.0".to_owned(),
            };
            let text = error.to_string();
            assert!(text.contains(expected), "{text}");
            assert!(text.contains("io_uring_setup") && text.contains("6.0.0"), "{text}");
        }
    }
}
