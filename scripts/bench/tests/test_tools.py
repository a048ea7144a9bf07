"""What tools say, as they said it, and what of it is understood."""

import json
import os
import signal
import unittest
from pathlib import Path

from bench import machine, process, tools

WRK = """Running 4s test @ https://127.0.0.1:12345/
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     3.35ms    1.12ms  23.67ms   91.67%
    Req/Sec    19.21k     1.05k   21.11k    70.00%
  Latency Distribution
     50%  890.00us
     75%    3.55ms
     90%    4.10ms
     99%    1.02s
  76543 requests in 4.01s, 37.95MB read
"""
WRK_TROUBLE = WRK + """  Socket errors: connect 0, read 12, write 0, timeout 3
  Non-2xx or 3xx responses: 7
Requests/sec:  19087.98
"""
H2LOAD = """finished in 4.00s, 25821.25 req/s, 8.47MB/s
requests: 103285 total, 104309 started, 103285 done, 103280 succeeded, 5 failed, 3 errored, 2 timeout
status codes: 103280 2xx, 0 3xx, 0 4xx, 5 5xx
traffic: 33.88MB (35527352) total, 2.96MB (3098550) headers (space savings 87.50%), 27.68MB (29023085) data
                     min         max         mean         sd        +/- sd
time for request:     1.22ms    102.53ms     39.11ms     10.04ms    72.10%
"""
LOAD = {
    "target": "mmtp://localhost:1/pay/281", "connections": 64, "outstanding": 1, "rate": None, "handshake": None,
    "per_connection": None, "seconds": 8.0, "requests": 123, "requests_per_s": 15.4, "bytes_received": 1, "bytes_sent": 1,
    "connections_opened": 64, "kinds": {"full": 64, "resumed": 0, "early": 0},
    "latency_micros": {"count": 123, "min": 1, "mean": 2.0, "p50": 2, "p75": 3, "p90": 4, "p99": 5, "p99.9": 6, "p99.99": 7,
                       "max": 8},
    "first_answer_micros": None, "connect_micros": None, "handshake_micros": None, "by_priority": None,
    "errors": {"connect refused": 0, "timeout": 2}, "receipts": {"not forwarded": 1, "unknown": 0}, "late_starts": 0,
    "cpu_micros": 1,
}


class Wrk(unittest.TestCase):
    def test_counts_and_percentiles(self):
        reading = tools.parse_wrk(WRK)
        self.assertEqual((reading["requests"], reading["seconds"], reading["errors"]), (76543, 4.01, {}))
        self.assertEqual(reading["latency_micros"], {"p50": 890.0, "p75": 3550.0, "p90": 4100.0, "p99": 1_020_000.0})

    def test_errors_by_kind(self):
        self.assertEqual(tools.parse_wrk(WRK_TROUBLE)["errors"], {"read": 12, "timeout": 3, "status": 7})

    def test_anything_else_is_an_error(self):
        with self.assertRaises(tools.OutputError):
            tools.parse_wrk("unable to connect to localhost:1 Connection refused")


class H2load(unittest.TestCase):
    def test_its_clock_is_set_to_the_millisecond(self):
        self.assertIn("2496ms", tools.h2load_command("https://a/", 64, 16, 2.4964))

    def test_counts_and_errors(self):
        reading = tools.parse_h2load(H2LOAD)
        self.assertEqual((reading["requests"], reading["seconds"]), (103280, 4.0))
        self.assertEqual(reading["errors"], {"failed": 5, "timeout": 2, "5xx": 5})

    def test_anything_else_is_an_error(self):
        with self.assertRaises(tools.OutputError):
            tools.parse_h2load("starting benchmark...")


class Load(unittest.TestCase):
    def test_errors_and_receipts_are_told_together_without_zeros(self):
        reading = tools.parse_load(json.dumps(LOAD))
        self.assertEqual(reading["errors"], {"timeout": 2, "not forwarded": 1})
        self.assertEqual(reading["latency_micros"]["p99.9"], 6)
        self.assertIsNone(reading["first_answer_micros"])

    def test_connections_lost_while_idle_are_errors(self):
        reading = tools.parse_load(json.dumps(LOAD | {"idle": {"held": 10, "lost": 3, "answered": 7}}))
        self.assertEqual(reading["errors"]["lost while idle"], 3)

    def test_anything_else_is_an_error(self):
        for text in ("", "{}", "[]", "{", json.dumps(LOAD | {"errors": None})):
            with self.assertRaises(tools.OutputError):
                tools.parse_load(text)

    def test_options_become_flags(self):
        command = tools.load_command("t", "mmtp://a/b", "ca", "out", per_connection=3, fast_open=True, rate=None, idle=False)
        self.assertEqual(command, ["t", "load", "mmtp://a/b", "--json", "out", "--quiet", "--ca", "ca", "--per-connection",
                                   "3", "--fast-open"])
        self.assertNotIn("--ca", tools.load_command("t", "http://a/b", "ca", "out"))


class Machine(unittest.TestCase):
    def test_shares_are_of_all_cores_between_two_readings(self):
        before = machine.parse_stat("cpu  9 9 9 9\ncpu0 10 0 10 100 0 0 0 0 0 0\ncpu1 0 0 0 50 0 0 0 0 0 0\nintr 1\n")
        after = machine.parse_stat("cpu  9 9 9 9\ncpu0 60 5 30 120 0 0 5 0 0 0\ncpu1 0 0 0 140 0 0 0 10 0 0\nintr 1\n")
        self.assertEqual(sorted(before), [0, 1])
        self.assertAlmostEqual(machine.share(before, after, "idle"), 110 / 200)
        self.assertAlmostEqual(machine.share(before, after, "steal"), 10 / 200)

    def test_a_busy_machine_is_warned_of(self):
        self.assertEqual(machine.warnings_of({"idle_share": 0.99, "steal_share": 0.0}), [])
        self.assertEqual(len(machine.warnings_of({"idle_share": 0.5, "steal_share": 0.5})), 2)

    def test_memory_is_read_from_the_rollup(self):
        text = "55d0-7fff ---p 00000000 00:00 0    [rollup]\nRss:   900 kB\nPss:   800 kB\nPss_Anon:  700 kB\nPss_File: 1 kB\n"
        self.assertEqual(process.parse_rollup(text), process.Memory(800 * 1024, 700 * 1024))

    def test_memory_of_a_process_that_ends_is_a_trouble(self):
        with self.assertRaises(process.ProcessEnded):
            process.parse_rollup("55d0-7fff ---p 00000000 00:00 0    [rollup]\n")

    def test_the_host_takes_from_the_core_it_takes_most_from(self):
        before = {0: machine.CoreTicks(0, 0, 0), 1: machine.CoreTicks(0, 0, 0)}
        after = {0: machine.CoreTicks(90, 0, 10), 1: machine.CoreTicks(0, 100, 0)}
        self.assertAlmostEqual(machine.steal_share(before, after), 0.1)
        self.assertEqual(machine.steal_share({}, {}), 0.0)

    def test_a_signal_waits_until_what_must_not_be_halved_is_done(self):
        told = []
        self.addCleanup(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, lambda *_: told.append("ended")))
        with process.undisturbed():
            os.kill(os.getpid(), signal.SIGTERM)
            told.append("done")
        self.assertEqual(told, ["done", "ended"])

    def test_lists_of_cores_are_read(self):
        self.assertEqual(machine.parse_cores("0-2,5\n"), [0, 1, 2, 5])

    def test_a_program_that_fails_says_nothing(self):
        self.assertEqual(machine.first_line(["sh", "-c", "echo fatal: no; exit 1"]), "")
        self.assertEqual(machine.first_line(["sh", "-c", "echo said"]), "said")
        self.assertIn("commit unknown", machine.commit_of(Path("/"), True))
        self.assertIn("commit unknown", machine.commit_of(Path("/"), False))

    def test_the_count_of_the_origin(self):
        status = "Active connections: 1 \nserver accepts handled requests\n 16 16 31070465 \nReading: 0 Writing: 1 Waiting: 0 \n"
        self.assertEqual(tools.parse_status(status), 31070465)
        with self.assertRaises(tools.OutputError):
            tools.parse_status("404")


if __name__ == "__main__":
    unittest.main()
