"""How each kind of case is measured. A runner gets a case and a run, and gives samples: label, round, figures, errors.

CPU per request is read in a window in the middle of the client's run: handshakes of the first connections and the end of
the last are outside. Requests are counted at the origin, by the same counter whatever the client and the contestant.
"""

import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from . import machine, stats, tools
from .process import ProcessEnded, cpu_ns, memory_of
from .site import Contestant, Settings, SetUpError, Site

# A client is started this much longer than what is read of it, and for each connection this much more: time that passes
# before its first request arrives.
SLACK_S = 0.7
SLACK_CONNECTION_S = 0.002
# What a client may take beyond its duration to start and to end.
CLIENT_PATIENCE_S = 40.0
# How often a turn is tried: a machine may stumble once.
ATTEMPTS_MAX = 2
# How long requests may take to arrive, thousands of connections included.
ARRIVAL_PATIENCE_S = 90.0
TROUBLES = (SetUpError, ProcessEnded, tools.OutputError)
# New connections at a time, where that is what is measured.
NEWCOMERS_AT_A_TIME = 16


@dataclass
class Run:
    """How long and how often, what is there to measure with, and what has been found so far."""

    settings: Settings
    seconds: float
    rounds: int
    quick: bool
    instruments: set
    say: object = print
    samples: list = field(default_factory=list)
    absent: dict = field(default_factory=dict)
    failures: int = 0

    def note(self, label: str, index: int, figures: dict, errors: dict) -> None:
        self.samples.append({"label": label, "round": index, "figures": figures, "errors": errors})
        told = "  ".join(f"{name} {value:.1f}" for name, value in figures.items() if value is not None)
        self.say(f"  round {index + 1}  {label:24} {told}" + (f"  ERRORS {errors}" if errors else ""))

    def drop(self, label: str, reason: Exception) -> None:
        """A contestant that cannot take part is told of, and the others go on."""
        self.absent[label] = str(reason)
        self.say(f"  WITHOUT {label}: {reason}")

    def fail(self, label: str, reason: Exception) -> None:
        """A turn that came to nothing: it is taken once more, and after the second time the contestant is dropped."""
        self.failures += 1
        if self.failures < ATTEMPTS_MAX:
            self.say(f"  again   {label}: {reason}")
        else:
            self.drop(label, reason)

    def turns(self, labels: list):
        """Who is measured when; those that were dropped miss their turns."""
        for index, label in stats.interleaved(labels, self.rounds):
            self.failures = 0
            while label not in self.absent:
                failures = self.failures
                yield index, label
                if self.failures == failures:
                    break


@dataclass
class Reading:
    """The accounts at one moment."""

    at_ns: int
    cpu_ns: int
    gateway_ns: int
    requests: int
    cores: dict


def read(site: Site, contestant: Contestant) -> Reading:
    gateway = site.gateway_of(contestant)
    return Reading(time.monotonic_ns(), cpu_ns(site.processes[contestant.server].pid),
                   cpu_ns(gateway.pid) if gateway else 0, site.origin_requests(), machine.core_ticks())


def figures_between(before: Reading, after: Reading, core: int) -> dict:
    """CPU per request of the contestant, of it and its gateway together, and requests per second."""
    requests, seconds = after.requests - before.requests, (after.at_ns - before.at_ns) / 1e9
    if requests <= 0:
        raise ProcessEnded("no request has arrived at the origin while it was measured")
    own = (after.cpu_ns - before.cpu_ns) / 1e9
    chain = own + (after.gateway_ns - before.gateway_ns) / 1e9
    busy = (after.cores[core].busy - before.cores[core].busy) / os.sysconf("SC_CLK_TCK")
    return {"cpu_micros": own * 1e6 / requests, "chain_cpu_micros": chain * 1e6 / requests,
            "requests_per_s": requests / seconds, "foreign_share": max(0.0, (busy - own) / seconds)}


class Client:
    """A client at work, on the other core."""

    def __init__(self, site: Site, command: list, parse, name: str = "client", report: Path | None = None, **how):
        self.name, self.output = name, site.directory / f"{name}.out"
        self.report = report or self.output
        for path in (self.output, self.report, site.directory / f"{name}.log"):
            path.unlink(missing_ok=True)
        self.site, self.parse = site, parse
        self.process = self.launched(command, stdout=self.output, **how)

    def launched(self, command: list, **how):
        return self.site.launch(self.name, command, self.site.settings.other_core, **how)

    def await_requests(self, count: int) -> None:
        """Until so many requests have arrived at the origin."""
        until = time.monotonic() + ARRIVAL_PATIENCE_S
        while self.site.origin_requests() < count:
            self.process.check()
            if time.monotonic() > until:
                raise ProcessEnded(f"no {count} requests at the origin in {ARRIVAL_PATIENCE_S:.0f} s: {self.process.tail()}")
            time.sleep(0.02)

    def reading(self, seconds: float) -> dict:
        """What it says when it is done. An exit code above 1 means that it could not run."""
        code = self.process.wait(seconds + CLIENT_PATIENCE_S)
        self.site.processes.pop(self.name, None)
        if code not in (0, 1):
            raise ProcessEnded(f"{self.process.command[0]} has ended with {code}: {self.process.tail()}")
        return self.parse(self.report.read_text())


def load_client(site: Site, url: str, name: str = "client", **options) -> Client:
    report = site.directory / f"{name}.json"
    command = tools.load_command(site.settings.trunkline, url, site.ca, str(report), **options)
    return Client(site, command, tools.parse_load, name, report)


def percentiles(reading: dict, source: str = "latency_micros", prefix: str = "") -> dict:
    """The ones that go into a summary, where the tool tells them."""
    told = reading.get(source) or {}
    wanted = ("p50", "p90", "p99", "p99.9")
    return {f"{prefix}{name}_micros": told[name] for name in wanted if told.get(name) is not None}


def windowed(site: Site, contestant: Contestant, client: Client, arrived: int, warm_s: float, seconds: float) -> tuple:
    """Figures of a window of the client's run, and its reading."""
    client.await_requests(arrived + 1)
    time.sleep(warm_s)
    before = read(site, contestant)
    time.sleep(seconds)
    after = read(site, contestant)
    if client.process.popen.poll() == 0:
        raise ProcessEnded("the client was done before the end of the window: the machine is too busy")
    client.process.check()
    reading = client.reading(SLACK_S + seconds)
    return figures_between(before, after, site.settings.contestant_core), reading


def start_all(site: Site, run: Run, contestants: tuple) -> None:
    for contestant in contestants:
        try:
            site.start(contestant)
        except TROUBLES as trouble:
            run.drop(contestant.name, trouble)


# ---- closed loop ----

def closed_loop_client(site: Site, case, contestant: Contestant, seconds: float) -> Client:
    """h2load where the case has several requests outstanding on https, load for MMTP, else wrk."""
    connections, outstanding = case.options["connections"], case.options.get("outstanding", 1)
    url = site.url(contestant, case.options.get("path", "281"))
    if contestant.scheme == "mmtp":
        return load_client(site, url, connections=connections, outstanding=outstanding,
                           duration=f"{seconds:.1f}s")
    if outstanding > 1:
        return Client(site, tools.h2load_command(url, connections, outstanding, seconds), tools.parse_h2load)
    return Client(site, tools.wrk_command(url, connections, seconds), tools.parse_wrk)


def closed_loop(case, run: Run) -> None:
    """Every connection asks again once it is answered."""
    by_name = {contestant.name: contestant for contestant in case.contestants}
    # So many handshakes at once take their time before the last connection stands.
    warm_s = 0.5 + case.options["connections"] * 0.0015
    duration_s = warm_s + run.seconds + SLACK_S + case.options["connections"] * SLACK_CONNECTION_S
    with Site(run.settings, case.name) as site:
        start_all(site, run, case.contestants)
        for index, label in run.turns(list(by_name)):
            contestant = by_name[label]
            try:
                arrived = site.origin_requests()
                client = closed_loop_client(site, case, contestant, duration_s)
                figures, reading = windowed(site, contestant, client, arrived, warm_s, run.seconds)
            except TROUBLES as trouble:
                site.end("client")
                run.fail(label, trouble)
                continue
            run.note(label, index, figures | percentiles(reading), reading["errors"])


# ---- new connections ----

def newcomers_client(site: Site, contestant: Contestant, kind: str, seconds: float) -> Client:
    """The client of `examples/newcomers`, waiting where it has its tickets."""
    alpn = "mmtp" if contestant.scheme == "mmtp" else "none"
    command = tools.newcomers_command(
        site.settings.newcomers, kind, f"127.0.0.1:{site.port(contestant.port)}", site.ca, alpn,
        threads=NEWCOMERS_AT_A_TIME, seconds=seconds)
    return Client(site, command, tools.parse_newcomers)


def new_connections(case, run: Run) -> None:
    """Connect, handshake of one kind, one request, close; a few at a time."""
    by_name = {contestant.name: contestant for contestant in case.contestants}
    kind, warm_s = case.options["kind"], 1.0
    with Site(run.settings, case.name) as site:
        start_all(site, run, case.contestants)
        for index, label in run.turns(list(by_name)):
            contestant, duration_s = by_name[label], warm_s + run.seconds + SLACK_S
            try:
                arrived = site.origin_requests()
                if "load --handshake" in run.instruments:
                    client = load_client(site, site.url(contestant), handshake=kind, connections=NEWCOMERS_AT_A_TIME,
                                         duration=f"{duration_s:.1f}s")
                else:
                    client = newcomers_client(site, contestant, kind, duration_s)
                figures, reading = windowed(site, contestant, client, arrived, warm_s, run.seconds)
            except TROUBLES as trouble:
                site.end("client")
                run.fail(label, trouble)
                continue
            figures |= percentiles(reading, "first_answer_micros", "first_answer_")
            run.note(label, index, figures, reading["errors"])


# ---- idle connections ----

def idle(case, run: Run) -> None:
    """Memory of connections that have asked once and stay: a fresh process each, warmed up by some that come and go."""
    connections = case.options["connections_quick" if run.quick else "connections"]
    rest_s = 1.5 if run.quick else 10.0
    by_name = {contestant.name: contestant for contestant in case.contestants}
    for index, label in run.turns(list(by_name)):
        with Site(run.settings, case.name) as site:
            try:
                figures, errors = idle_figures(site, run, by_name[label], connections, rest_s)
            except TROUBLES as trouble:
                site.end("client")
                run.fail(label, trouble)
                continue
            run.note(label, index, figures, errors)


def idle_figures(site: Site, run: Run, contestant: Contestant, connections: int, rest_s: float) -> tuple:
    server = site.start(contestant)
    warm_up(site, run, contestant)
    time.sleep(rest_s)
    before, arrived = memory_of(server.pid), site.origin_requests()
    if "load --idle" in run.instruments:
        # Held until it is told to wake them.
        client = load_client(site, site.url(contestant), idle=True, connections=connections, duration="10m")
    else:
        client = hold_client(site, contestant, connections)
    client.await_requests(arrived + connections)
    time.sleep(rest_s)
    after = memory_of(server.pid)
    client.process.check()
    wake(client)
    reading = client.reading(0.0)
    figures = {"memory_bytes": (after.anonymous - before.anonymous) / connections,
               "memory_pss_bytes": (after.whole - before.whole) / connections}
    return figures, reading["errors"]


def wake(client: Client) -> None:
    """All that is held asks again, and then the client ends."""
    if client.process.popen.stdin:
        client.process.popen.stdin.close()
    else:
        client.process.popen.send_signal(signal.SIGTERM)


def hold_client(site: Site, contestant: Contestant, connections: int) -> Client:
    alpn = "mmtp" if contestant.scheme == "mmtp" else "none"
    command = tools.newcomers_command(
        site.settings.newcomers, "hold", f"127.0.0.1:{site.port(contestant.port)}", site.ca, alpn,
        connections=connections)
    return Client(site, command, tools.parse_newcomers, stdin=subprocess.PIPE)


def warm_up(site: Site, run: Run, contestant: Contestant) -> None:
    """What a process makes once, and keeps, is not what a connection costs."""
    if "load --handshake" in run.instruments:
        client = load_client(site, site.url(contestant), handshake="full", connections=NEWCOMERS_AT_A_TIME,
                             duration="1s")
    else:
        client = newcomers_client(site, contestant, "full", 1.0)
    client.reading(1.0)


# ---- open loop ----

def half_load(case, run: Run) -> None:
    """Latency of all at half of the rate at which nginx is saturated, from the intended start of each request."""
    by_name = {contestant.name: contestant for contestant in case.contestants}
    connections = case.options["connections"]
    with Site(run.settings, case.name) as site:
        start_all(site, run, case.contestants)
        rate = round(saturation(site, run, by_name[case.options["measure"]], case.options["saturating"]) / 2)
        run.say(f"  half of saturation: {rate} requests/s")
        for index, label in run.turns(list(by_name)):
            contestant, warm_s = by_name[label], 0.5
            try:
                arrived = site.origin_requests()
                client = load_client(site, site.url(contestant), connections=connections, rate=rate,
                                     duration=f"{warm_s + run.seconds + SLACK_S:.1f}s")
                figures, reading = windowed(site, contestant, client, arrived, warm_s, run.seconds)
            except TROUBLES as trouble:
                site.end("client")
                run.fail(label, trouble)
                continue
            figures |= percentiles(reading) | {"rate_per_s": rate}
            run.note(label, index, figures, reading["errors"])


def saturation(site: Site, run: Run, contestant: Contestant, connections: int) -> float:
    """Requests per second that wrk gets in closed loop."""
    arrived = site.origin_requests()
    command = tools.wrk_command(site.url(contestant), connections, 0.5 + run.seconds + SLACK_S)
    figures, _ = windowed(site, contestant, Client(site, command, tools.parse_wrk), arrived, 0.5, run.seconds)
    return figures["requests_per_s"]


# ---- bulk beside small ----

# Nothing beside; the same bulk from the origin past the contestant, which shows what sharing a core with clients and
# origin does by itself; and through the contestant.
PHASES = ("quiet", "with bulk elsewhere", "beside bulk")


def mixed(case, run: Run) -> None:
    """Latency of small requests at a fixed rate with and without downloads beside them."""
    by_name = {f"{contestant.name} {phase}": (contestant, phase)
               for contestant in case.contestants for phase in PHASES}
    with Site(run.settings, case.name) as site:
        start_all(site, run, case.contestants)
        for contestant in case.contestants:
            if contestant.name in run.absent:
                run.absent |= {f"{contestant.name} {phase}": run.absent[contestant.name] for phase in PHASES}
        for index, label in run.turns(list(by_name)):
            contestant, phase = by_name[label]
            try:
                figures, errors = mixed_figures(site, case, run, contestant, phase)
            except TROUBLES as trouble:
                run.fail(label, trouble)
                continue
            finally:
                site.end("client")
                site.end("bulk")
            run.note(label, index, figures, errors)


def mixed_figures(site: Site, case, run: Run, contestant: Contestant, phase: str) -> tuple:
    bulk, duration_s = None, run.seconds + 2.5
    if phase != PHASES[0]:
        url = site.origin_url("1m") if phase == PHASES[1] else bulk_url(site, contestant)
        bulk = bulk_client(site, case, url, duration_s)
        time.sleep(1.0)
    client = load_client(site, site.url(contestant), connections=case.options["connections"],
                         rate=case.options["rate"], duration=f"{run.seconds:.1f}s")
    reading = client.reading(run.seconds)
    figures, errors = percentiles(reading), dict(reading["errors"])
    if bulk:
        downloads = bulk.reading(duration_s)
        figures["bulk_mib_per_s"] = downloads["requests"] / downloads["seconds"]
        errors |= {f"bulk {kind}": count for kind, count in downloads["errors"].items()}
    return figures, errors


def bulk_client(site: Site, case, url: str, duration_s: float) -> Client:
    """Downloads of 1 MiB: as fast as they come with wrk, or so many per second."""
    downloads, rate = case.options["downloads"], case.options["downloads_per_s"]
    if rate is None:
        return Client(site, tools.wrk_command(url, downloads, duration_s), tools.parse_wrk, name="bulk")
    return load_client(site, url, name="bulk", connections=downloads, rate=rate, duration=f"{duration_s:.1f}s")


def bulk_url(site: Site, contestant: Contestant) -> str:
    """Downloads go over https: through a POP, as a tunnel beside whatever the small requests speak."""
    return f"https://localhost:{site.port(contestant.port)}/1m"


