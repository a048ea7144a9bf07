"""How each kind of case is measured. A runner gets a case and a run, and gives samples: label, round, figures, errors.

CPU per request is read in a window of the client's run: handshakes of the first connections are before it, and the client is
told to end after it, so that no turn waits for a clock. Requests are counted at the origin, by the same counter whatever the
client and the contestant.
"""

import http.client
import os
import signal
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from . import charts, machine, stats, template, tools
from .process import ProcessEnded, cpu_ns, memory_of
from .site import Contestant, Settings, SetUpError, Site

# How long a client would run if it were not told to end, as it is once its window has been read.
CLIENT_DURATION_MAX = "2m"
# From the first request to the window, and for each connection beside: handshakes of all at once take their time before the
# last connection stands, about a millisecond each with both ends on slow cores.
WARM_S, WARM_CONNECTION_S = 0.3, 0.0015
# New connections come all the time: what has to settle is the first tickets, and the pool of connections to the origin.
WARM_NEW_S = 0.5
# h2load goes by its clock, which starts before its connections stand: it runs this much longer than what is read of it, and
# for each connection this much more.
SLACK_S, SLACK_CONNECTION_S = 1.5, 0.002
# How long nginx is saturated to know what half of that is.
SATURATION_S = 1.5
# Downloads are under way for so long before small requests are beside them.
BULK_LEAD_S = 0.5
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

    def take(self, takers: dict, turn) -> None:
        """Turns of all takers, by label. `turn` gets the round and the taker, and gives figures and errors; what goes wrong in
        it is the taker's trouble."""
        for index, label in self.turns(list(takers)):
            try:
                figures, errors = turn(index, takers[label])
            except TROUBLES as trouble:
                self.fail(label, index, trouble)
            else:
                self.note(label, index, figures, errors)

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
    """A client at work, on the other core. Used as a context: it ends with it, whatever happened."""

    error_share_max = ERROR_SHARE_MAX
    errors_tolerated = ()

    def __init__(self, site: Site, command: list, parse, name: str = "client", report: Path | None = None,
                 goes_by_clock: bool = False):
        self.name, self.output, self.goes_by_clock = name, site.directory / f"{name}.out", goes_by_clock
        self.report = report or self.output
        for path in (self.output, self.report, site.directory / f"{name}.log"):
            path.unlink(missing_ok=True)
        self.site, self.parse = site, parse
        self.process = self.launched(command)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.site.end(self.name)

    def launched(self, command: list):
        return self.site.launch(self.name, command, self.site.settings.other_core, stdout=self.output)

    def await_requests(self, count: int) -> None:
        """Until so many requests have arrived at the origin."""
        until = time.monotonic() + ARRIVAL_PATIENCE_S
        while self.site.origin_requests() < count:
            self.process.check()
            if time.monotonic() > until:
                raise ProcessEnded(f"no {count} requests at the origin in {ARRIVAL_PATIENCE_S:.0f} s: {self.process.tail()}")
            time.sleep(0.02)

    def finish(self) -> dict:
        """What it says when it is told that it is enough; wrk and load then tell what they have seen so far."""
        if self.process.popen.poll() == 0:
            raise ProcessEnded("the client was done before it was told to be: the machine is too busy")
        self.process.check()
        if not self.goes_by_clock:
            self.process.popen.send_signal(signal.SIGINT)
        return self.reading()

    def reading(self, seconds: float = 0.0) -> dict:
        """What it says when it is done. An exit code above 1 means that it could not run; too many errors void its turn."""
        code = self.process.wait(seconds + CLIENT_PATIENCE_S)
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


def load_client(site: Site, url: str, process: str = "client", kind=Client, **options) -> Client:
    """Options are those of `trunkline load`."""
    report = site.directory / f"{process}.json"
    command = tools.load_command(site.settings.trunkline, url, site.ca, str(report),
                                 **{"duration": CLIENT_DURATION_MAX} | options)
    return kind(site, command, tools.parse_load, process, report)


def wrk_client(site: Site, url: str, connections: int, process: str = "client") -> Client:
    return Client(site, tools.wrk_command(url, connections, CLIENT_DURATION_MAX), tools.parse_wrk, process)


def percentiles(reading: dict) -> dict:
    """The ones that go into a summary, where the tool tells them."""
    figures = {}
    for source, prefix in (("latency_micros", ""), ("first_answer_micros", "first_answer_")):
        told = reading.get(source) or {}
        figures |= {f"{prefix}{name}_micros": told[name] for name in ("p50", "p90", "p99", "p99.9") if told.get(name) is not None}
    return figures


def windowed(site: Site, contestant: Contestant, make_client, warm_s: float, seconds: float) -> tuple:
    """A turn: figures of a window of a client's run with its percentiles, and its errors."""
    arrived = site.origin_requests()
    with make_client() as client:
        client.await_requests(arrived + 1)
        time.sleep(warm_s)
        before = read(site, contestant)
        time.sleep(seconds)
        after = read(site, contestant)
        reading = client.finish()
    figures = figures_between(before, after, site.settings.contestant_core, site.settings.other_core)
    return figures | percentiles(reading), reading["errors"]


def load_turn(site: Site, contestant: Contestant, warm_s: float, seconds: float, **options) -> tuple:
    """A turn of `trunkline load` that asks for the small body."""
    return windowed(site, contestant, lambda: load_client(site, site.url(contestant), **options), warm_s, seconds)


def takers_of(case) -> dict:
    return {contestant.name: contestant for contestant in case.contestants}


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
        return load_client(site, url, connections=connections, outstanding=outstanding)
    if outstanding > 1:
        duration_s = seconds + SLACK_S + connections * SLACK_CONNECTION_S
        return Client(site, tools.h2load_command(url, connections, outstanding, duration_s), tools.parse_h2load,
                      goes_by_clock=True)
    return wrk_client(site, url, connections)


def closed_loop(case, run: Run) -> None:
    """Every connection asks again once it is answered."""
    warm_s = WARM_S + case.options["connections"] * WARM_CONNECTION_S
    with Site(run.settings, case.name) as site:
        start_all(site, run, case.contestants)
        run.take(takers_of(case), lambda _, contestant: windowed(
            site, contestant, lambda: closed_loop_client(site, case, contestant, warm_s + run.seconds), warm_s, run.seconds))


# ---- new connections ----

def new_connections(case, run: Run) -> None:
    """Connect, handshake of one kind, one request, close; a few at a time."""
    with Site(run.settings, case.name) as site:
        start_all(site, run, case.contestants)
        run.take(takers_of(case), lambda _, contestant: load_turn(
            site, contestant, WARM_NEW_S, run.seconds, handshake=case.options["kind"], connections=NEWCOMERS_AT_A_TIME))


# ---- idle connections ----

def idle(case, run: Run) -> None:
    """Memory of connections that have asked once and stay: a fresh process each, warmed up by some that come and go."""
    connections = case.options["connections_quick" if run.quick else "connections"]

    def turn(_, contestant: Contestant) -> tuple:
        with Site(run.settings, case.name) as site:
            return idle_figures(site, contestant, connections, run.seconds / 2)

    run.take(takers_of(case), turn)


def idle_figures(site: Site, contestant: Contestant, connections: int, rest_s: float) -> tuple:
    server = site.start(contestant)
    warm_up(site, contestant)
    time.sleep(rest_s)
    before, arrived = memory_of(server.pid), site.origin_requests()
    with load_client(site, site.url(contestant), idle=True, connections=connections, duration="10m") as client:
        client.await_requests(arrived + connections)
        time.sleep(rest_s)
        after = memory_of(server.pid)
        # All that is held asks again, and then the client ends.
        reading = client.finish()
    figures = {"memory_bytes": (after.anonymous - before.anonymous) / connections,
               "memory_pss_bytes": (after.whole - before.whole) / connections}
    return figures, reading["errors"]


def warm_up(site: Site, contestant: Contestant) -> None:
    """What a process makes once, and keeps, is not what a connection costs."""
    with load_client(site, site.url(contestant), handshake="full", connections=NEWCOMERS_AT_A_TIME, duration="1s") as client:
        client.reading()


# ---- open loop ----

def half_load(case, run: Run) -> None:
    """Latency of all at half of the rate at which nginx is saturated in the same round, from the intended start of each
    request. A rate that is measured once would be another share of what the machine can do in every round."""
    contestants, rates = takers_of(case), {}
    with Site(run.settings, case.name) as site:
        start_all(site, run, case.contestants)

        def turn(index: int, contestant: Contestant) -> tuple:
            if index not in rates:
                rates[index] = round(saturation(site, contestants[case.options["measure"]], case.options["saturating"]) / 2)
            figures, errors = load_turn(site, contestant, WARM_S, run.seconds,
                                        connections=case.options["connections"], rate=rates[index])
            return figures | {"rate_per_s": rates[index]}, errors

        run.take(contestants, turn)


def saturation(site: Site, contestant: Contestant, connections: int) -> float:
    """Requests per second that wrk gets in closed loop."""
    url = site.url(contestant)
    figures, _ = windowed(site, contestant, lambda: wrk_client(site, url, connections), WARM_S, SATURATION_S)
    return figures["requests_per_s"]


# ---- bulk beside small ----

# Nothing beside; the same bulk from the origin past the contestant, which shows what sharing a core with clients and
# origin does by itself; and through the contestant.
PHASES = ("quiet", "with bulk elsewhere", "beside bulk")


def mixed(case, run: Run) -> None:
    """Latency of small requests at a fixed rate with and without downloads beside them."""
    takers = {f"{contestant.name} {phase}": (contestant, phase) for contestant in case.contestants for phase in PHASES}
    with Site(run.settings, case.name) as site:
        start_all(site, run, case.contestants)
        for name, reason in list(run.absent.items()):
            run.absent |= {f"{name} {phase}": reason for phase in PHASES}
        run.take(takers, lambda _, taker: mixed_turn(site, case, run.seconds, *taker))


def mixed_turn(site: Site, case, seconds: float, contestant: Contestant, phase: str) -> tuple:
    with bulk_client(site, case, contestant, phase) as bulk:
        if bulk:
            time.sleep(BULK_LEAD_S)
        with load_client(site, site.url(contestant), connections=case.options["connections"],
                         rate=case.options["rate"], duration=f"{seconds * 1000:.0f}ms") as client:
            reading = client.reading(seconds)
        figures, errors = percentiles(reading), dict(reading["errors"])
        if bulk:
            downloads = bulk.finish()
            figures["bulk_mib_per_s"] = downloads["requests"] / downloads["seconds"]
            errors |= {f"bulk {kind}": count for kind, count in downloads["errors"].items()}
    return figures, errors


def bulk_client(site: Site, case, contestant: Contestant, phase: str):
    """Downloads of 1 MiB, as fast as they come with wrk, or so many per second; a context of None where nothing is beside.
    They go over https: through a POP, as a tunnel beside whatever the small requests speak."""
    if phase == PHASES[0]:
        return nullcontext()
    url = site.origin_url("1m") if phase == PHASES[1] else f"https://localhost:{site.port(contestant.port)}/1m"
    downloads, rate = case.options["downloads"], case.options["downloads_per_s"]
    if rate is None:
        return wrk_client(site, url, downloads, "bulk")
    return load_client(site, url, "bulk", connections=downloads, rate=rate)
