"""Cases over emulated links: a phone, a POP and a data center in namespaces of their own (scripts/bench/net.sh).

Every contestant's servers run at once, each in its place; clients on the phone take turns. The links go on with their
seeded fates from turn to turn, so rounds differ, and two runs with one seed are alike.
"""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from .runners import Client, load_client, percentiles, takers_of
from .site import SetUpError, Site, wait_for

NET = Path(__file__).resolve().parent.parent / "net.sh"
POP_ADDRESS, DC_ADDRESS, DC_DIRECT_ADDRESS = "10.77.1.2", "10.77.2.2", "10.77.3.2"
# What is under way when a turn ends is no error of the contestant's where answers take seconds. It is counted and told.
UNFINISHED = "unanswered at the end"
# Of the connections of a turn: over a link that loses packets some fail, and that is part of the figure.
ERROR_SHARE_MAX = 0.05
SEED = 1


@dataclass(frozen=True)
class Way:
    """How a user gets to the origin: to which address and port, speaking what, and with what his software brings along."""

    name: str
    title: str
    address: str
    port: str
    options: tuple
    scheme: str = "https"


def ways(direct: dict, nginx: dict, tunnel: dict | None, mmtp: dict, fast: dict | None) -> tuple:
    """Contestants with the client options of each; None leaves one out."""
    every = (
        ("pop-mmtp", "Trunkline, MMTP", POP_ADDRESS, "pop", mmtp, "mmtp"),
        ("pop", "Trunkline, tunnel", POP_ADDRESS, "pop", tunnel, "https"),
        ("nginx-pop", "nginx as POP", POP_ADDRESS, "nginx_https", nginx, "https"),
        ("nginx-pop-fast", "nginx as POP, early + Fast Open", POP_ADDRESS, "nginx_https", fast, "https"),
        ("direct", "direct (nginx, no POP)", DC_DIRECT_ADDRESS, "direct_https", direct, "https"),
    )
    return tuple(Way(name, title, address, port, tuple(options.items()), scheme)
                 for name, title, address, port, options, scheme in every if options is not None)


FULL, RESUMED = {"handshake": "full"}, {"handshake": "resumed"}
EARLY = {"handshake": "early", "fast_open": True}
COLD = ways(direct=FULL, nginx=FULL, tunnel=FULL, mmtp=FULL, fast=None)
RETURNING = ways(direct=RESUMED, nginx=RESUMED, tunnel=RESUMED, mmtp=EARLY, fast=EARLY)
BODY = ways(direct=RESUMED, nginx=RESUMED, tunnel=RESUMED, mmtp=EARLY, fast=EARLY)


class LinkedSite(Site):
    """A site whose processes are in three namespaces."""

    def __init__(self, settings, case: str, profile: str):
        super().__init__(settings, case)
        self.environment = os.environ | {"NET_PREFIX": f"tlb{os.getpid()}", "NET_CORES": str(settings.other_core),
                                         "NET_STATE": str(self.directory / "net")}
        self.profile = profile

    def __enter__(self):
        try:
            self.net("up", self.profile, "--seed", str(SEED))
            for place in ("phone", "pop", "dc"):
                # Both ends of Fast Open; as tuning/ has it on servers, and phones have it for clients.
                self.net("exec", place, "sysctl", "--quiet", "--write", "net.ipv4.tcp_fastopen=3")
            self.make_files()
            self.start_servers()
        except BaseException:
            self.stop()
            raise
        return self

    def clear(self) -> None:
        subprocess.run([NET, "down"], env=self.environment, capture_output=True, check=False)
        super().clear()

    def net(self, *words: str) -> str:
        done = subprocess.run([NET, *words], env=self.environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SetUpError(f"net.sh {' '.join(words)}: {done.stderr.strip()[-400:]}")
        return done.stdout

    def launch_in(self, place: str, name: str, command: list, **how):
        core = self.settings.contestant_core if place == "pop" else self.settings.other_core
        prefix = ["env", *(f"{name}={self.environment[name]}" for name in ("NET_PREFIX", "NET_STATE")), NET, "exec", place]
        return self.launch(name, [*prefix, *command], core, **how)

    def answers_in(self, place: str, url: str) -> bool:
        """Whether a place can ask itself."""
        command = [NET, "exec", place, "curl", "--silent", "--fail", "--insecure", "--output", "/dev/null",
                   "--max-time", "5", url]
        return subprocess.run(command, env=self.environment, capture_output=True, check=False).returncode == 0

    def start_servers(self) -> None:
        origin = self.launch_in("dc", "origin", self.origin_command("0.0.0.0"))
        wait_for(origin, lambda: self.answers_in("dc", f"http://127.0.0.1:{self.port('origin')}/281"))
        self.start_nginx_in("dc", "nginx-direct", "127.0.0.1", "direct_https")
        self.start_nginx_in("pop", "nginx-pop", DC_ADDRESS, "nginx_https")
        # The gateway's certificate holds names of loopback; the address here is another.
        changes = {"pop": '[[backbone.gateway]]\nserver_name = "localhost"\n'}
        commands = self.trunkline_commands("pop", "pop", POP_ADDRESS, DC_ADDRESS, changes)
        self.launch_in("dc", "pop-gateway", commands["gateway"])
        pop = self.launch_in("pop", "pop", commands["pop"])
        wait_for(pop, lambda: self.answers_in("pop", f"http://127.0.0.1:{self.port('pop_admin')}/ready"))

    def start_nginx_in(self, place: str, name: str, origin_address: str, port: str) -> None:
        process = self.launch_in(place, name, self.nginx_command(name, port, "0.0.0.0", origin_address, {}))
        wait_for(process, lambda: self.answers_in(place, f"https://127.0.0.1:{self.port(port)}/281"))


class PhoneClient(Client):
    """A client on the phone."""

    error_share_max = ERROR_SHARE_MAX
    errors_tolerated = (UNFINISHED,)

    def launched(self, command: list):
        return self.site.launch_in("phone", self.name, command, stdout=self.output)


def link_turn(site: LinkedSite, way: Way, options: dict, seconds: float) -> tuple:
    """`connections` at a time: enough to count, too few to fill the link."""
    service = "pay/" if way.scheme == "mmtp" else ""
    url = f"{way.scheme}://{way.address}:{site.port(way.port)}/{service}{options.get('path', '281')}"
    with load_client(site, url, kind=PhoneClient, name="localhost", connections=options["connections"],
                     duration=f"{seconds * 1000:.0f}ms", **dict(way.options)) as client:
        reading = client.reading(seconds)
    errors = dict(reading["errors"])
    figures = percentiles(reading) | {"connections": reading["requests"], "unfinished": errors.pop(UNFINISHED, 0)}
    return figures, errors


def over_link(case, run) -> None:
    """New connections, one request each, from the phone: time to the first byte of the answer, and to its end."""
    with LinkedSite(run.settings, case.name, case.options["profile"]) as site:
        run.take(takers_of(case), lambda _, way: link_turn(site, way, case.options, run.seconds))
