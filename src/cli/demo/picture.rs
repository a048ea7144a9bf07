//! What the demo shows, as text of at most 100 columns: the path, what each step took, what was counted. Owns the layout;
//! never measures and never writes.

use std::fmt::Write as _;
use std::net::SocketAddr;

/// Bold and back, where the terminal knows it.
#[derive(Clone, Copy)]
pub(super) struct Style {
    /// Whether the text goes to a terminal that shows emphasis.
    pub(super) is_terminal: bool,
}

impl Style {
    pub(super) fn bold(self, text: &str) -> String {
        if self.is_terminal { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// The addresses on the path, and where its parties run.
pub(super) struct Path {
    pub(super) pop: SocketAddr,
    pub(super) pop_core: Option<usize>,
    pub(super) gateway: SocketAddr,
    pub(super) gateway_core: Option<usize>,
    pub(super) origin: SocketAddr,
    pub(super) trunks: u64,
}

/// Columns between the bars of a box: an address of IPv4 with a space on either side.
const BOX_COLUMNS: usize = 17;

/// Columns between the bars of the client's box.
const CLIENT_COLUMNS: usize = 11;

/// Columns between two boxes.
const WAY_COLUMNS: usize = 9;

impl Path {
    /// The drawing.
    pub(super) fn draw(&self) -> String {
        let core = |core: Option<usize>| core.map_or("1 worker".to_owned(), |core| format!("on core {core}"));
        let (pop_core, gateway_core) = (core(self.pop_core), core(self.gateway_core));
        let (pop, gateway, origin) = (self.pop.to_string(), self.gateway.to_string(), self.origin.to_string());
        let trunks = format!("{} trunks", self.trunks);
        let rows: [([&str; 4], [&str; 3]); 3] = [
            (["client", "POP", "gateway", "origin"], ["TLS 1.3", "TLS both", "TCP"]),
            (["mmtp://", &pop, &gateway, &origin], ["-------->", "========>", "-------->"]),
            (["https://", &pop_core, &gateway_core, "plain HTTP/1.1"], ["", &trunks, ""]),
        ];
        let border = |columns: usize| format!("+{}+", "-".repeat(columns));
        let gap = " ".repeat(WAY_COLUMNS);
        let (narrow, wide) = (border(CLIENT_COLUMNS), border(BOX_COLUMNS));
        let edge = format!("  {narrow}{gap}{wide}{gap}{wide}{gap}{wide}\n");
        let mut text = edge.clone();
        for ([client, boxes @ ..], ways) in rows {
            let _ = write!(text, "  |{client:^CLIENT_COLUMNS$}|");
            for (way, content) in ways.into_iter().zip(boxes) {
                let _ = write!(text, "{way:^WAY_COLUMNS$}|{content:^BOX_COLUMNS$}|");
            }
            text.push('\n');
        }
        text + &edge
    }
}

/// One request and what it took, in milliseconds; None: the step was not needed.
pub(super) struct Step {
    pub(super) what: String,
    pub(super) connect_ms: Option<f64>,
    pub(super) tls_ms: Option<f64>,
    pub(super) first_byte_ms: Option<f64>,
    pub(super) total_ms: Option<f64>,
    pub(super) outcome: String,
}

impl Step {
    /// The line above the steps.
    pub(super) fn heading() -> String {
        let (what, connect, tls) = ("what was sent, times in ms", "connect", "TLS");
        format!("  {what:<36}{connect:>9}{tls:>9}{:>12}{:>9}   answer", "first byte", "total")
    }

    /// Its line.
    pub(super) fn line(&self, number: usize) -> String {
        let time = |ms: Option<f64>| ms.map_or("-".to_owned(), |ms| format!("{ms:.2}"));
        let (connect, tls) = (time(self.connect_ms), time(self.tls_ms));
        let (first, total) = (time(self.first_byte_ms), time(self.total_ms));
        let what = format!("{number}. {}", self.what);
        format!("  {what:<36}{connect:>9}{tls:>9}{first:>12}{total:>9}   {}", self.outcome)
    }
}

/// What many equal calls at once came to, and what the POP counted meanwhile.
pub(super) struct Burst {
    pub(super) calls: usize,
    pub(super) outstanding: usize,
    pub(super) seconds: f64,
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
    pub(super) streams: u64,
    pub(super) receives: u64,
    pub(super) sends: u64,
    pub(super) passes: u64,
    pub(super) trunks: u64,
    /// Connections to the origin that the gateway keeps after it.
    pub(super) upstreams: u64,
}

impl Burst {
    pub(super) fn text(&self) -> String {
        let each = |count: u64| count as f64 / self.streams.max(1) as f64;
        let Burst { calls, outstanding, p50_ms, p99_ms, streams, trunks, .. } = self;
        let per_second = *calls as f64 / self.seconds;
        let mut text = format!(
            "  {calls} calls, {outstanding} at a time, on one connection: {per_second:.0} requests/s\n  \
             {:.0} ms in all; half answered within {p50_ms:.1} ms, 99% within {p99_ms:.1} ms\n",
            self.seconds * 1000.0,
        );
        text += "  What the POP counted meanwhile (calls that move together share records and sends):\n";
        let upstreams = format!("over {trunks} trunks; connections kept to the origin: {}", self.upstreams);
        for (name, count, remark) in [
            ("streams", *streams, upstreams.as_str()),
            ("receives", self.receives, "2 if each came alone: the request and its answer"),
            ("sends", self.sends, "2 if each went alone"),
            ("passes", self.passes, "of the worker's loop, one system call or two each"),
        ] {
            let _ = writeln!(text, "    {name:<9}{count:>7}{:>8.2} per request   {remark}", each(count));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns_max(text: &str) -> usize {
        text.lines().map(|line| line.chars().count()).max().unwrap_or(0)
    }

    #[test]
    fn the_widest_path_fits_and_its_boxes_stand_straight() {
        let address = SocketAddr::from(([127, 0, 0, 1], 65535));
        let (pop_core, gateway_core) = (Some(0), None);
        let path = Path { pop: address, pop_core, gateway: address, gateway_core, origin: address, trunks: 2 };
        let text = path.draw();
        assert_eq!(text.lines().count(), 5);
        assert!(text.lines().all(|line| line.len() == columns_max(&text)), "{text}");
        assert!(columns_max(&text) <= 100, "{text}");
        assert_eq!(text.matches("127.0.0.1:65535").count(), 3);
    }

    #[test]
    fn steps_and_burst_fit() {
        let step = Step {
            what: "https GET /hello, as curl would".to_owned(),
            connect_ms: Some(1234.5),
            tls_ms: None,
            first_byte_ms: Some(0.123),
            total_ms: Some(12345.6),
            outcome: "200, 123 bytes".to_owned(),
        };
        assert!(columns_max(&Step::heading()) <= 100 && columns_max(&step.line(4)) <= 100);
        assert!(step.line(4).contains("4. https GET") && step.line(4).contains(" - "), "{}", step.line(4));
        let burst = Burst {
            calls: 2000,
            outstanding: 100,
            seconds: 0.25,
            p50_ms: 123.4,
            p99_ms: 1234.5,
            streams: 2000,
            receives: 1000,
            sends: 500,
            passes: 400,
            trunks: 2,
            upstreams: 100,
        };
        assert!(burst.text().contains("8000 requests/s") && burst.text().contains("0.25 per request"));
        assert!(columns_max(&burst.text()) <= 100, "{}", burst.text());
    }

    #[test]
    fn emphasis_is_for_terminals() {
        assert_eq!(Style { is_terminal: false }.bold("a"), "a");
        assert_eq!(Style { is_terminal: true }.bold("a"), "\x1b[1ma\x1b[0m");
    }
}
