"""How each kind of case is measured. A runner gets a case and a run, and gives samples: label, round, figures, errors.

CPU per request is read in a window in the middle of the client's run: handshakes of the first connections and the end of
the last are outside. Requests are counted at the origin, by the same counter whatever the client and the contestant.
"""

import http.client
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

from . import charts, machine, stats, template, tools
from .process import ProcessEnded, cpu_ns, memory_of
from .site import Contestant, Settings, SetUpError, Site

# A client is started this much longer than what is read of it, and in a closed loop for each connection this much more: of
# wrk and h2load the clock starts before their connections stand.
SLACK_S = 0.7
SLACK_CONNECTION_S = 0.002
# What a client may take beyond its duration to start and to end.
CLIENT_PATIENCE_S = 40.0
# How often a turn is tried: a machine may stumble once.
ATTEMPTS_MAX = 2
# How long requests may take to arrive, thousands of connections included.
ARRIVAL_PATIENCE_S = 90.0
# A turn with more errors than this share of its requests is void: who answers less, and otherwise, is not compared.
ERROR_SHARE_MAX = 0.001


class TurnVoid(Exception):
    """A turn with too many errors."""


# What ends a turn, or a case, and not the run. A file or a connection that fails (OSError) is among them.
TROUBLES = (SetUpError, ProcessEnded, TurnVoid, tools.OutputError, template.TemplateError, OSError,
            http.client.HTTPException)
# Processes on the other core, beside gateways.
BESIDE = ("origin", "client", "bulk")
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
    # Turns that were taken once more: label, round, reason.
    again: list = field(default_factory=list)
    failures: int = 0
    disturbances: int = 0
    began: dict = field(default_factory=dict)

    def note(self, label: str, index: int, figures: dict, errors: dict) -> None:
        """Figures of a turn. One from which the host took time is taken once more; the second is kept, and is marked."""
        if "steal_share" not in figures:
            figures = figures | {"steal_share": machine.steal_share(self.began, machine.core_ticks())}
        if figures["steal_share"] > machine.STEAL_SHARE_MAX and not self.disturbances:
            self.disturbances += 1
            self.retake(label, index, f"the host took {figures['steal_share']:.1%} of a core meanwhile")
            return
        self.samples.append({"label": label, "round": index, "figures": figures, "errors": errors})
        told = "  ".join(f"{name} {charts.number(value)}" for name, value in figures.items() if value is not None)
        self.say(f"  round {index + 1}  {label:24} {told}" + (f"  ERRORS {errors}" if errors else ""))

    def retake(self, label: str, index: int, reason: str) -> None:
        self.again.append({"label": label, "round": index, "reason": reason})
        self.say(f"  again   {label}: {reason}")

    def drop(self, label: str, reason: Exception) -> None:
        """A contestant that cannot take part is told of, and the others go on."""
        self.absent[label] = words_of(reason)
        self.say(f"  WITHOUT {label}: {self.absent[label]}")

    def fail(self, label: str, index: int, reason: Exception) -> None:
        """A turn that came to nothing: it is taken once more, and after the second time the contestant is dropped."""
        self.failures += 1
        if self.failures < ATTEMPTS_MAX:
            self.retake(label, index, words_of(reason))
        else:
            self.drop(label, reason)

    def turns(self, labels: list):
        """Who is measured when; those that were dropped miss their turns."""
        for index, label in stats.interleaved(labels, self.rounds):
            self.failures = self.disturbances = 0
            while label not in self.absent:
                bad = self.failures + self.disturbances
                self.began = machine.core_ticks()
                yield index, label
                if self.failures + self.disturbances == bad:
                    break


def words_of(trouble: Exception) -> str:
    """A trouble for a reader: of those that are not the bench's own, the kind as well."""
    own = isinstance(trouble, (SetUpError, ProcessEnded, TurnVoid, tools.OutputError, template.TemplateError))
    return str(trouble) if own else f"{type(trouble).__name__}: {trouble}"


@dataclass
class Reading:
    """The accounts at one moment."""

    at_ns: int
    cpu_ns: int
    gateway_ns: int
    requests: int
    cores: dict
    # CPU of all that the bench has on the other core, itself included.
    others_ns: int


def read(site: Site, contestant: Contestant) -> Reading:
    gateway = site.gateway_of(contestant)
    beside = [process for name, process in site.processes.items() if name in BESIDE or name.endswith("-gateway")]
    return Reading(time.monotonic_ns(), cpu_ns(site.processes[contestant.server].pid),
                   cpu_ns(gateway.pid) if gateway else 0, site.origin_requests(), machine.core_ticks(),
                   time.process_time_ns() + sum(cpu_ns(process.pid) for process in beside))


def figures_between(before: Reading, after: Reading, core: int, other_core: int) -> dict:
    """CPU per request of the contestant, of it and its gateway together, and requests per second; and of both cores what
    went to strangers, and to the host. With one core nobody can say who a stranger is."""
    requests, seconds = after.requests - before.requests, (after.at_ns - before.at_ns) / 1e9
    if requests <= 0:
        raise ProcessEnded("no request has arrived at the origin while it was measured")
    own = (after.cpu_ns - before.cpu_ns) / 1e9
    chain = own + (after.gateway_ns - before.gateway_ns) / 1e9
    figures = {"cpu_micros": own * 1e6 / requests, "chain_cpu_micros": chain * 1e6 / requests,
               "requests_per_s": requests / seconds, "steal_share": machine.steal_share(before.cores, after.cores)}
    if core != other_core:
        others = (after.others_ns - before.others_ns) / 1e9
        figures |= {"foreign_share": max(0.0, (busy_s(before, after, core) - own) / seconds),
                    "foreign_other_share": max(0.0, (busy_s(before, after, other_core) - others) / seconds)}
    return figures


def busy_s(before: Reading, after: Reading, core: int) -> float:
    return (after.cores[core].busy - before.cores[core].busy) / os.sysconf("SC_CLK_TCK")


class Client:
    """A client at work, on the other core."""

    error_share_max = ERROR_SHARE_MAX
    errors_tolerated = ()

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
        """What it says when it is done. An exit code above 1 means that it could not run; too many errors void its turn."""
        code = self.process.wait(seconds + CLIENT_PATIENCE_S)
        self.site.processes.pop(self.name, None)
        if code not in (0, 1):
            raise ProcessEnded(f"{self.process.command[0]} has ended with {code}: {self.process.tail()}")
        reading = self.parse(self.report.read_text())
        check_errors(reading, self.error_share_max, self.errors_tolerated)
        return reading


def check_errors(reading: dict, share_max: float = ERROR_SHARE_MAX, tolerated: tuple = ()) -> None:
    """Raises `TurnVoid` for more errors than a share of what was asked."""
    errors = {kind: count for kind, count in reading["errors"].items() if kind not in tolerated}
    count = sum(errors.values())
    if count > share_max * (reading["requests"] + count):
        told = ", ".join(f"{number} × {kind}" for kind, number in errors.items())
        raise TurnVoid(f"{count} errors beside {reading['requests']} good answers, more than {share_max:.1%}: {told}")


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
    return figures_between(before, after, site.settings.contestant_core, site.settings.other_core), reading


def start_all(site: Site, run: Run, contestants: tuple) -> None:
    for contestant in contestants:
        try:
            site.start(contestant)
            if contestant.scheme == "https":
                site.check_suite(contestant)
        except TROUBLES as trouble:
            run.drop(contestant.name, trouble)


# ---- closed loop ----

def closed_loop_client(site: Site, case, contestant: Contestant, seconds: float) -> Client:
    """load for MMTP and whom it is to ask, h2load where the case has several requests outstanding on https, else wrk."""
    connections, outstanding = case.options["connections"], case.options.get("outstanding", 1)
    url = site.url(contestant, case.options.get("path", "281"))
    if contestant.scheme == "mmtp" or contestant.is_asked_by_load:
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
                run.fail(label, index, trouble)
                continue
            run.note(label, index, figures | percentiles(reading), reading["errors"])


# ---- new connections ----

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
                client = load_client(site, site.url(contestant), handshake=kind, connections=NEWCOMERS_AT_A_TIME,
                                     duration=f"{duration_s:.1f}s")
                figures, reading = windowed(site, contestant, client, arrived, warm_s, run.seconds)
            except TROUBLES as trouble:
                site.end("client")
                run.fail(label, index, trouble)
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
                figures, errors = idle_figures(site, by_name[label], connections, rest_s)
            except TROUBLES as trouble:
                site.end("client")
                run.fail(label, index, trouble)
                continue
            run.note(label, index, figures, errors)


def idle_figures(site: Site, contestant: Contestant, connections: int, rest_s: float) -> tuple:
    server = site.start(contestant)
    warm_up(site, contestant)
    time.sleep(rest_s)
    before, arrived = memory_of(server.pid), site.origin_requests()
    # Held until it is told to wake them.
    client = load_client(site, site.url(contestant), idle=True, connections=connections, duration="10m")
    client.await_requests(arrived + connections)
    time.sleep(rest_s)
    after = memory_of(server.pid)
    client.process.check()
    # All that is held asks again, and then the client ends.
    client.process.popen.send_signal(signal.SIGTERM)
    reading = client.reading(0.0)
    figures = {"memory_bytes": (after.anonymous - before.anonymous) / connections,
               "memory_pss_bytes": (after.whole - before.whole) / connections}
    return figures, reading["errors"]


def warm_up(site: Site, contestant: Contestant) -> None:
    """What a process makes once, and keeps, is not what a connection costs."""
    load_client(site, site.url(contestant), handshake="full", connections=NEWCOMERS_AT_A_TIME, duration="1s").reading(1.0)


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
                run.fail(label, index, trouble)
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
                run.fail(label, index, trouble)
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


