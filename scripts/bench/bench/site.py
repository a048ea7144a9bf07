"""A place to measure in: certificates, files, ports, the origin and the contestants, each a process ended with the site.

The contestant has one core for itself; the origin, the gateway, the clients and the bench share another. The bench keeps
to it by `keep_to_other_core`.
"""

import http.client
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from . import template, tools
from .process import Process, undisturbed

READY_PATIENCE_S = 15.0
# Outside the range from which the kernel takes the ports of connections.
PORT_MIN, PORT_MAX = 12000, 27000
SUITE = "TLS_AES_128_GCM_SHA256"
FILES = {"281": 281, "100k": 100 << 10, "1m": 1 << 20}


class SetUpError(Exception):
    """Something that a case needs does not work here."""


@dataclass(frozen=True)
class Contestant:
    """One way to the origin: which server, which of its ports, and what is spoken there."""

    name: str
    title: str
    server: str
    port: str
    scheme: str = "https"
    changes: tuple = field(default=())
    # True: asked by `trunkline load` where another tool would ask this scheme.
    is_asked_by_load: bool = False


@dataclass
class Settings:
    """What holds for the whole run."""

    trunkline: str
    pop_config: str = ""
    gateway_config: str = ""
    keep: Path | None = None

    def __post_init__(self):
        allowed = sorted(os.sched_getaffinity(0))
        self.contestant_core = allowed[0]
        self.other_core = allowed[1] if len(allowed) > 1 else allowed[0]

    def keep_to_other_core(self) -> None:
        """Keeps this process, which asks and reads while it measures, off the contestant's core."""
        os.sched_setaffinity(0, {self.other_core})


class Site:
    """Used as a context: everything started in it ends with it."""

    def __init__(self, settings: Settings, case: str):
        self.settings, self.case = settings, case
        self.ports, self.processes = {}, {}
        self.status_reads = 0
        self.directory = Path(tempfile.mkdtemp(prefix="trunkline-bench-"))
        # Workers of nginx run as another user: let them in.
        self.directory.chmod(0o755)

    def __enter__(self):
        # A set-up that fails half-way must not leave half of it.
        try:
            self.make_files()
            self.start_origin()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self) -> None:
        with undisturbed():
            # All at once first: who drains does so beside the others.
            for process in self.processes.values():
                process.ask_to_end()
            for name in list(self.processes)[::-1]:
                self.end(name)
            self.clear()

    def clear(self) -> None:
        """What is left of it when its processes have ended."""
        if self.settings.keep:
            kept = self.settings.keep / self.case
            kept.mkdir(parents=True, exist_ok=True)
            for path in self.directory.iterdir():
                if path.is_file():
                    shutil.copy(path, kept)
        shutil.rmtree(self.directory, ignore_errors=True)

    # ---- files and ports ----

    def make_files(self) -> None:
        www = self.directory / "www"
        www.mkdir()
        for name, length in FILES.items():
            (www / name).write_bytes(b"x" * length)
        certs = self.directory / "certs"
        command = [self.settings.trunkline, "certs", "--out", str(certs), "--name", "localhost"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SetUpError(f"trunkline certs: {done.stderr.strip()}")
        (certs / "haproxy.pem").write_bytes((certs / "pop.pem").read_bytes() + (certs / "pop.key").read_bytes())

    @property
    def ca(self) -> str:
        return str(self.directory / "certs" / "ca.pem")

    def port(self, name: str) -> int:
        if name not in self.ports:
            self.ports[name] = free_port(taken=set(self.ports.values()))
        return self.ports[name]

    def url(self, contestant: Contestant, path: str = "281") -> str:
        service = "pay/" if contestant.scheme == "mmtp" else ""
        return f"{contestant.scheme}://localhost:{self.port(contestant.port)}/{service}{path}"

    def origin_url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port('origin')}/{path}"

    # ---- processes ----

    def write(self, name: str, text: str) -> Path:
        path = self.directory / name
        path.write_text(text)
        return path

    def launch(self, name: str, command: list, core: int, **how) -> Process:
        process = Process(name, command, self.directory / f"{name}.log", core, **how)
        self.processes[name] = process
        return process

    def end(self, name: str) -> None:
        process = self.processes.pop(name, None)
        if process:
            process.stop()

    def start_origin(self) -> None:
        process = self.launch("origin", self.origin_command("127.0.0.1"), self.settings.other_core)
        wait_for(process, lambda: accepts(self.port("origin")))

    def start(self, contestant: Contestant) -> Process:
        """Its server, unless that runs already."""
        if contestant.server not in self.processes:
            kind = contestant.server.split("-")[0]
            starter = {"nginx": self.start_nginx, "haproxy": self.start_haproxy, "pop": self.start_pop}[kind]
            try:
                starter(contestant)
            except BaseException:
                # The next contestant of this server is told the same, instead of meeting half of it.
                self.end(contestant.server)
                self.end(f"{contestant.server}-gateway")
                raise
        return self.processes[contestant.server]

    def start_nginx(self, contestant: Contestant) -> None:
        name = contestant.server
        https, stream = self.port(f"{name}_https"), self.port(f"{name}_stream")
        command = self.nginx_command(name, f"{name}_https", "127.0.0.1", "127.0.0.1", dict(contestant.changes))
        process = self.launch(name, command, self.settings.contestant_core)
        wait_for(process, lambda: accepts(https) and accepts(stream))

    def start_haproxy(self, contestant: Contestant) -> None:
        values = {"directory": self.directory, "address": "127.0.0.1", "origin_address": "127.0.0.1",
                  "origin_port": self.port("origin"), "haproxy_http_port": self.port("haproxy_http"),
                  "haproxy_tcp_port": self.port("haproxy_tcp")}
        path = self.write("haproxy.cfg", template.render_peer("haproxy.cfg", values | dict(contestant.changes)))
        process = self.launch("haproxy", ["haproxy", "-db", "-f", path], self.settings.contestant_core)
        wait_for(process, lambda: accepts(self.port("haproxy_http")))

    def start_pop(self, contestant: Contestant) -> None:
        """A POP and the gateway that is its own: experiments must not meet on a gateway."""
        name, changes = contestant.server, dict(contestant.changes)
        commands = self.trunkline_commands(name, contestant.port, "127.0.0.1", "127.0.0.1", changes)
        gateway = self.launch(f"{name}-gateway", commands["gateway"], self.settings.other_core)
        pop = self.launch(name, commands["pop"], self.settings.contestant_core)
        wait_for(pop, lambda: gateway.check() or is_ready(self.port(f"{name}_admin")))

    # ---- commands, with the configurations that they name ----

    def origin_command(self, address: str) -> list:
        values = {"directory": self.directory, "address": address, "origin_port": self.port("origin")}
        path = self.write("origin.conf", template.render_peer("nginx-origin.conf", values))
        return ["nginx", "-c", path, "-p", self.directory, "-e", self.directory / "origin-error.log"]

    def nginx_command(self, name: str, https_port: str, address: str, origin_address: str, changes: dict) -> list:
        values = {"directory": self.directory, "name": name, "address": address, "origin_address": origin_address,
                  "origin_port": self.port("origin"), "https_port": self.port(https_port),
                  "stream_port": self.port(f"{name}_stream")}
        path = self.write(f"{name}.conf", template.render_peer("nginx.conf", values | changes))
        return ["nginx", "-c", path, "-p", self.directory, "-e", self.directory / f"{name}-error.log"]

    def trunkline_commands(self, name: str, port: str, pop_address: str, gateway_address: str, changes: dict) -> dict:
        """Of a POP and its gateway, by role; `changes` are TOML by role."""
        settings, gateway_port = self.settings, self.port(f"{name}_gateway")
        gateway = {"core": settings.other_core, "address": gateway_address, "gateway_port": gateway_port,
                   "origin_address": "127.0.0.1", "origin_port": self.port("origin"),
                   "admin_port": self.port(f"{name}_gateway_admin")}
        pop = {"core": settings.contestant_core, "address": pop_address, "pop_port": self.port(port),
               "gateway_address": gateway_address, "gateway_port": gateway_port, "admin_port": self.port(f"{name}_admin")}
        return {"gateway": self.trunkline_command("gateway", f"{name}-gateway", gateway,
                                                  (changes.get("gateway", ""), settings.gateway_config)),
                "pop": self.trunkline_command("pop", name, pop, (changes.get("pop", ""), settings.pop_config))}

    def trunkline_command(self, role: str, name: str, values: dict, changes: tuple) -> list:
        """A key that this binary does not know is a reason to skip a case, not a crash. Checked on the core it names, which
        the bench itself has given away."""
        path = self.write(f"{name}.toml", template.render_peer(f"{role}.toml", values, changes))
        command = [self.settings.trunkline, role, "--config", path]
        done = subprocess.run(["taskset", "--cpu-list", str(values["core"]), *command, "--check"],
                              capture_output=True, text=True, check=False)
        if done.returncode:
            said = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("error")]
            raise SetUpError(f"this trunkline refuses the configuration: {(said or ['no reason told'])[0]}")
        return command

    # ---- readings ----

    def gateway_of(self, contestant: Contestant) -> Process | None:
        return self.processes.get(f"{contestant.server}-gateway")

    def origin_requests(self) -> int:
        """Requests that have arrived at the origin; those that asked for this count are not in it."""
        count = tools.parse_status(fetch(self.port("origin"), "/status")[1])
        # Only one that was answered is known to be in the count.
        self.status_reads += 1
        return count - self.status_reads

    def check_suite(self, contestant: Contestant) -> None:
        """All contestants are to seal with the same suite, though OpenSSL's clients offer another one first."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with socket.create_connection(("127.0.0.1", self.port(contestant.port)), timeout=10) as plain:
            with context.wrap_socket(plain, server_hostname="localhost") as connection:
                name = connection.cipher()[0]
        if name != SUITE:
            raise SetUpError(f"{contestant.title} has chosen {name}, and this bench compares at {SUITE}")


def free_port(taken: set) -> int:
    """A port that nothing listens on."""
    span = PORT_MAX - PORT_MIN
    for step in range(span):
        port = PORT_MIN + (os.getpid() * 7 + step) % span
        if port in taken:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise SetUpError("no free port")


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def fetch(port: int, path: str) -> tuple:
    """Status and text."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def is_ready(admin_port: int) -> bool:
    try:
        return fetch(admin_port, "/ready")[0] == 200
    except OSError:
        return False


def wait_for(process: Process, is_done) -> None:
    """Until it is so; an end of the process, or no end of waiting, is an error with its log."""
    until = time.monotonic() + READY_PATIENCE_S
    while not is_done():
        process.check()
        if time.monotonic() > until:
            raise SetUpError(f"{process.name} is not ready after {READY_PATIENCE_S:.0f} s: {process.tail()}")
        time.sleep(0.05)
