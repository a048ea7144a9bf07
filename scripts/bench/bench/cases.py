"""What is measured: one entry each. To add a case, add it here; a kind of its own gets a runner."""

from dataclasses import dataclass

from . import link, runners
from .site import Contestant

POP = Contestant("pop", "Trunkline, tunnel", "pop", "pop")
POP_MMTP = Contestant("pop-mmtp", "Trunkline, MMTP", "pop", "pop", scheme="mmtp")
POP_PLAIN = Contestant("pop-plain", "Trunkline, tunnel, trunk in plaintext", "pop-plain", "pop_plain", changes=(
    ("pop", "[backbone]\ntls = false\n"), ("gateway", "[listen]\ntls = false\n")))
NGINX_STREAM = Contestant("nginx-stream", "nginx stream", "nginx", "nginx_stream")
# With buffers that few would give every connection: two of 64 KiB each.
NGINX_STREAM_64K = Contestant("nginx-stream-64k", "nginx stream, buffers of 64 KiB", "nginx-64k", "nginx-64k_stream",
                              changes=(("stream_buffer_size", "64k"),))
NGINX_HTTPS = Contestant("nginx-https", "nginx https", "nginx", "nginx_https")
# The client that asks MMTP, so that what it does is no part of a difference; with several outstanding it pipelines.
NGINX_HTTPS_LOAD = Contestant("nginx-https-load", "nginx https, asked by load", "nginx", "nginx_https", is_asked_by_load=True)
NGINX_H2 = Contestant("nginx-h2", "nginx http/2", "nginx", "nginx_https")
HAPROXY_TCP = Contestant("haproxy-tcp", "HAProxy tcp", "haproxy", "haproxy_tcp")
HAPROXY_HTTP = Contestant("haproxy-http", "HAProxy http", "haproxy", "haproxy_http")

# Nobody may be closed for being silent; and tickets, which outlive connections, must not count as theirs.
IDLE_POP = (("pop", "[worker]\nclients_max = 16000\nidle_timeout = '1h'\n[tickets]\ncapacity = 1000\n"),
            ("gateway", "[upstream]\nconnections_max = 16000\n"))
IDLE = (
    Contestant("pop", "Trunkline, tunnel", "pop", "pop", changes=IDLE_POP),
    Contestant("pop-mmtp", "Trunkline, MMTP", "pop", "pop", scheme="mmtp", changes=IDLE_POP),
    Contestant("nginx-https", "nginx https", "nginx", "nginx_https",
               changes=(("keepalive_timeout", "1h"), ("ssl_buffer_size", "4k"))),
    Contestant("haproxy-http", "HAProxy http", "haproxy", "haproxy_http"),
)
SMALL = (POP, NGINX_STREAM, NGINX_HTTPS, HAPROXY_TCP, HAPROXY_HTTP)


@dataclass(frozen=True)
class Case:
    """One thing that is measured. `needs` are instruments: without one, the case is skipped and says so."""

    name: str
    group: str
    title: str
    runner: object
    contestants: tuple
    options: dict
    needs: tuple = ()
    # Rather more turns than longer ones: a ratio is the median over rounds. Of an odd number of rounds one is the median.
    seconds: float = 1.5
    rounds: int = 9
    seconds_quick: float = 0.8
    rounds_quick: int = 1
    # What a turn takes beside its seconds, for the estimate.
    overhead_s: float = 0.6
    turns_per_contestant: int = 1

    def estimate_s(self, seconds: float, rounds: int) -> float:
        """About how long it takes, servers' start included."""
        turns = len(self.contestants) * self.turns_per_contestant * rounds
        return 2.0 + turns * (seconds + self.overhead_s)


def small(connections: int) -> Case:
    return Case(f"small-{connections}", "small", f"Small requests, {connections} connections", runners.closed_loop,
                SMALL, {"connections": connections}, needs=("wrk",),
                overhead_s=0.5 + connections * 0.0017)


def new(kind: str, words: str) -> Case:
    contestants = (POP, POP_MMTP, NGINX_HTTPS, HAPROXY_HTTP)
    return Case(f"new-{kind}", "new", f"New connections, {words}", runners.new_connections, contestants,
                {"kind": kind}, needs=("load --handshake",), overhead_s=0.75)


def mixed(name: str, pace: str, downloads_per_s: int | None) -> Case:
    return Case(name, "mixed", f"Small requests beside downloads, {pace}", runners.mixed, (POP, POP_MMTP, NGINX_HTTPS),
                {"connections": 16, "rate": 1000, "downloads": 4, "downloads_per_s": downloads_per_s},
                needs=("wrk", "load --rate"), seconds=2.0, rounds=7, overhead_s=0.7, turns_per_contestant=len(runners.PHASES))


def over_link(name: str, title: str, contestants: tuple, options: dict, **pace) -> Case:
    # Round trips of 350 ms: first tickets before a turn, and what is under way after it, take seconds.
    pace = {"seconds": 8.0, "rounds": 5, "seconds_quick": 2.0, "overhead_s": 5.5} | pace
    return Case(f"link-{name}", "link", title, link.over_link, contestants, {"profile": "p50", "connections": 16} | options,
                needs=("load --handshake", "net.sh (which wants root)"), **pace)


CASES = (
    small(16), small(64), small(256), small(1000),
    Case("mmtp-64x1", "mmtp", "MMTP requests, 64 connections, 1 outstanding", runners.closed_loop,
         (POP_MMTP, NGINX_HTTPS, NGINX_HTTPS_LOAD), {"connections": 64}, needs=("wrk", "load")),
    Case("mmtp-64x16", "mmtp", "MMTP requests, 64 connections, 16 outstanding", runners.closed_loop,
         (POP_MMTP, NGINX_H2, NGINX_HTTPS_LOAD), {"connections": 64, "outstanding": 16}, needs=("h2load", "load")),
    Case("bulk", "bulk", "Bodies of 1 MiB, 16 connections", runners.closed_loop,
         (POP, POP_PLAIN, NGINX_STREAM, NGINX_STREAM_64K, NGINX_HTTPS, HAPROXY_TCP, HAPROXY_HTTP),
         {"connections": 16, "path": "1m"}, needs=("wrk",)),
    new("full", "full handshake"), new("resumed", "resumed"), new("early", "early data"),
    Case("idle", "idle", "Idle connections", runners.idle, IDLE,
         {"connections": 15000, "connections_quick": 2000}, needs=("load --idle",), seconds=20.0, rounds=1,
         seconds_quick=2.0, overhead_s=8.0),
    mixed("mixed", "as fast as they come", None), mixed("mixed-paced", "150 MiB/s in all", 150),
    Case("half-load", "half-load", "Latency at half of nginx's saturation rate", runners.half_load,
         (POP, POP_MMTP, NGINX_HTTPS), {"connections": 64, "saturating": 64, "measure": "nginx-https"},
         needs=("wrk", "load --rate"), seconds=4.0, overhead_s=1.2),
    over_link("cold", "Time to first answer over a poor network, new user", link.COLD, {}, overhead_s=3.5),
    over_link("returning", "Time to first answer over a poor network, returning user", link.RETURNING, {}),
    over_link("body", "100 KiB over a poor network, returning user", link.BODY,
              # Two at a time: loss, not the link's rate, is then what their time depends on.
              {"path": "100k", "connections": 2}, seconds=16.0, rounds=3, seconds_quick=4.0),
)


def chosen(names: list, left_out: list = ()) -> list:
    """Cases by name or group, in the order of the table, all if none is named; a name that is neither is an error that
    lists them all."""
    known = {case.name for case in CASES} | {case.group for case in CASES}
    unknown = [name for name in [*names, *left_out] if name not in known]
    if unknown:
        raise ValueError(f"no case {', '.join(unknown)}; there are {', '.join(case.name for case in CASES)}")
    named = [case for case in CASES if not names or case.name in names or case.group in names]
    return [case for case in named if case.name not in left_out and case.group not in left_out]
