//! The log: lines of the workers, taken from their bounded queue by the slow thread and written as `tracing` events.
//!
//! Owns the limit on repetition and the form of the lines. Never makes a worker wait: what finds the queue full is
//! dropped and counted by the worker. Invariant: what can be written is
//! what a [`LogLine`] can hold, fixed words, ids and codes, never payload, keys or tickets; and a kind of line is
//! written at most [`BURST_LINES`] times per [`WINDOW`], so that an attack cannot fill a disk.

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, Instant};

use crossbeam::queue::ArrayQueue;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::base::slab::Key;
use crate::base::wire::LogLine;

use super::config::{LogConfig, LogFormat};

/// Lines of one kind (the same words) written per [`WINDOW`]; the rest is counted and told in one line.
pub const BURST_LINES: u32 = 20;

/// See [`BURST_LINES`].
pub const WINDOW: Duration = Duration::from_secs(10);

/// Lines taken per turn: the slow thread has other work.
const LINES_PER_TURN: usize = 4096;

/// Environment variable that goes before `log.level`: a level, or filters of `tracing-subscriber`.
pub const LEVEL_VARIABLE: &str = "TRUNKLINE_LOG";

/// The queue of lines that all workers share with the slow thread, with the worker's index.
pub type LogQueue = ArrayQueue<(usize, LogLine)>;

/// Writes the lines of the workers. Of the slow thread alone.
#[derive(Debug, Default)]
pub struct LogWriter {
    limiter: Limiter,
}

impl LogWriter {
    /// Writes what waits in `queue`. To be called some times a second. Returns how many lines were taken.
    pub fn drain(&mut self, now: Instant, queue: &LogQueue) -> usize {
        let mut taken = 0;
        for (worker, line) in std::iter::from_fn(|| queue.pop()).take(LINES_PER_TURN) {
            taken += 1;
            if self.limiter.admit(now, (line.what, line.detail)) {
                emit(worker, &line);
            }
        }
        self.limiter.close_windows(now, emit_suppressed);
        taken
    }

    /// Writes what is left when the workers have ended, and tells what the limit held back.
    pub fn finish(&mut self, now: Instant, queue: &LogQueue) {
        while self.drain(now, queue) > 0 {}
        self.limiter.close_windows(now + WINDOW, emit_suppressed);
    }
}

fn emit(worker: usize, line: &LogLine) {
    tracing::info!(
        worker,
        link = line.link.map(|link| tracing::field::display(LinkText(link))),
        peer = line.peer.map(tracing::field::display),
        code = (line.code != 0).then_some(line.code),
        detail = (!line.detail.is_empty()).then_some(line.detail),
        "{}",
        line.what
    );
}

fn emit_suppressed((what, detail): Kind, count: u64) {
    let detail = (!detail.is_empty()).then_some(detail);
    tracing::info!(detail, suppressed = count, seconds = WINDOW.as_secs(), "{what}");
}

/// A link as `slot.generation`.
struct LinkText(Key);

impl fmt::Display for LinkText {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}.{}", self.0.index, self.0.generation)
    }
}

/// What happened and its detail: the words two lines must share to be of one kind. Both are fixed in the source, so
/// there are as many kinds as the source has lines.
type Kind = (&'static str, &'static str);

/// Counts lines by kind in windows that begin with the first line.
#[derive(Debug, Default)]
struct Limiter {
    windows: HashMap<Kind, Window>,
}

#[derive(Debug)]
struct Window {
    began: Instant,
    lines: u64,
}

impl Limiter {
    /// Whether this line is to be written.
    fn admit(&mut self, now: Instant, kind: Kind) -> bool {
        let window = self.windows.entry(kind).or_insert(Window { began: now, lines: 0 });
        window.lines += 1;
        window.lines <= u64::from(BURST_LINES)
    }

    /// Forgets windows that are over, and tells how many lines each held back.
    fn close_windows(&mut self, now: Instant, mut tell: impl FnMut(Kind, u64)) {
        self.windows.retain(|kind, window| {
            let is_over = now.saturating_duration_since(window.began) >= WINDOW;
            if is_over && window.lines > u64::from(BURST_LINES) {
                tell(*kind, window.lines - u64::from(BURST_LINES));
            }
            !is_over
        });
    }
}

/// Why the log could not be opened.
#[derive(Debug)]
pub struct LogError(String);

impl fmt::Display for LogError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl std::error::Error for LogError {}

/// Sends every event of this process to standard error, in the configured format.
///
/// # Errors
/// When `TRUNKLINE_LOG` holds no filter, or the log was opened before.
pub fn open(config: &LogConfig) -> Result<(), LogError> {
    let given = std::env::var(LEVEL_VARIABLE).ok();
    let subscriber = subscriber(config, given.as_deref(), std::io::stderr)?;
    tracing::subscriber::set_global_default(subscriber).map_err(|_| LogError("the log is open already".to_owned()))
}

/// `filter` is what the environment says, which goes before the configured level.
fn subscriber<W>(
    config: &LogConfig,
    filter: Option<&str>,
    writer: W,
) -> Result<Box<dyn tracing::Subscriber + Send + Sync>, LogError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let filter = match filter {
        Some(text) => EnvFilter::try_new(text).map_err(|error| {
            LogError(format!("{LEVEL_VARIABLE} is \"{text}\": {error}; use error, warn, info, debug or trace"))
        })?,
        None => EnvFilter::new(config.level.as_str()),
    };
    // A line that cannot be written (disk full) is lost: telling so by `eprintln!`, as the library would, panics.
    let builder = tracing_subscriber::fmt().log_internal_errors(false);
    let builder = builder.with_env_filter(filter).with_writer(writer).with_target(false);
    Ok(match config.format {
        LogFormat::Text => Box::new(builder.with_ansi(false).finish()),
        LogFormat::Json => Box::new(builder.json().flatten_event(true).finish()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("no test panics while writing").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn written(format: LogFormat, filter: Option<&str>, work: impl FnOnce()) -> String {
        let out = Written::default();
        let writer = out.clone();
        let config = LogConfig { format, ..LogConfig::default() };
        let subscriber = subscriber(&config, filter, move || writer.clone()).expect("a good filter");
        tracing::subscriber::with_default(subscriber, work);
        let bytes = out.0.lock().expect("no test panics while writing").clone();
        String::from_utf8(bytes).expect("log lines are text")
    }

    fn line(what: &'static str) -> LogLine {
        LogLine {
            what,
            link: Some(Key { index: 3, generation: 9 }),
            peer: Some("192.0.2.1:5".parse().expect("an address")),
            code: 104,
            detail: "receive",
        }
    }

    fn bare(what: &'static str) -> LogLine {
        LogLine { what, link: None, peer: None, code: 0, detail: "" }
    }

    #[test]
    fn lines_carry_their_fields_in_both_formats() {
        let (queue, mut writer) = (LogQueue::new(8), LogWriter::default());
        assert!(queue.push((1, line("link lost"))).is_ok());
        let text = written(LogFormat::Text, None, || assert_eq!(writer.drain(Instant::now(), &queue), 1));
        for field in ["INFO", "link lost", "worker=1", "link=3.9", "peer=192.0.2.1:5", "code=104", "detail=\"receive\""]
        {
            assert!(text.contains(field), "{field}: {text}");
        }
        assert!(queue.push((0, line("link lost"))).is_ok() && queue.push((0, bare("started"))).is_ok());
        let text = written(LogFormat::Json, None, || assert_eq!(writer.drain(Instant::now(), &queue), 2));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        for field in [
            "\"message\":\"link lost\"",
            "\"worker\":0",
            "\"link\":\"3.9\"",
            "\"peer\":\"192.0.2.1:5\"",
            "\"code\":104",
        ] {
            assert!(lines[0].contains(field), "{field}: {text}");
        }
        for field in ["link\"", "peer", "code", "detail"] {
            assert!(!lines[1].contains(field), "{field}: {text}");
        }
    }

    #[test]
    fn repetition_is_limited_and_told() {
        let (queue, mut writer) = (LogQueue::new(200), LogWriter::default());
        let start = Instant::now();
        let count = |text: &str, word: &str| text.lines().filter(|line| line.contains(word)).count();
        for _ in 0..100 {
            assert!(queue.push((0, bare("flood"))).is_ok());
        }
        assert!(queue.push((0, bare("rare"))).is_ok());
        let text = written(LogFormat::Text, None, || assert_eq!(writer.drain(start, &queue), 101));
        assert_eq!((count(&text, "flood"), count(&text, "rare")), (BURST_LINES as usize, 1), "{text}");
        let text = written(LogFormat::Text, None, || assert_eq!(writer.drain(start + WINDOW, &queue), 0));
        assert!(text.contains("suppressed=80") && count(&text, "flood") == 1, "{text}");
        assert!(queue.push((0, bare("flood"))).is_ok());
        let text = written(LogFormat::Text, None, || assert_eq!(writer.drain(start + WINDOW, &queue), 1));
        assert_eq!(count(&text, "flood"), 1, "a new window begins");
    }

    #[test]
    fn what_was_held_back_is_told_at_the_end() {
        let (queue, mut writer) = (LogQueue::new(200), LogWriter::default());
        for _ in 0..30 {
            assert!(queue.push((0, bare("flood"))).is_ok());
        }
        let text = written(LogFormat::Text, None, || writer.finish(Instant::now(), &queue));
        assert!(text.contains("suppressed=10"), "{text}");
    }

    #[test]
    fn the_environment_goes_before_the_configuration() {
        let (queue, mut writer) = (LogQueue::new(200), LogWriter::default());
        assert!(queue.push((0, bare("x"))).is_ok());
        let text = written(LogFormat::Text, Some("error"), || assert_eq!(writer.drain(Instant::now(), &queue), 1));
        assert_eq!(text, "");
        let wrong = subscriber(&LogConfig::default(), Some("trunkline=loud"), io::sink).map(|_| ());
        assert!(wrong.expect_err("no such level").to_string().contains(LEVEL_VARIABLE));
    }
}
