"""The clients: how each is called, and what its output says, in one shape.

A reading is a table: `requests`, `seconds`, `latency_micros` (percentiles by name, only what the tool tells), `errors`
(count by kind, no entry for none), and, from clients that open connections, `first_answer_micros` and `kinds`.
"""

import json
import re

TIME = re.compile(r"([0-9.]+)(us|ms|s|m|h)\b")
MICROS = {"us": 1.0, "ms": 1e3, "s": 1e6, "m": 6e7, "h": 3.6e9}


class OutputError(Exception):
    """A tool said something that is not understood."""


def micros_of(text: str) -> float:
    """`1.25ms` in microseconds."""
    match = TIME.fullmatch(text)
    if not match:
        raise OutputError(f"{text!r} is no time")
    return float(match.group(1)) * MICROS[match.group(2)]


def wrk_command(url: str, connections: int, duration: str) -> list:
    return ["wrk", "--threads", "1", "--connections", connections, "--duration", duration, "--timeout", "10s", "--latency", url]


def parse_wrk(text: str) -> dict:
    done = re.search(r"(\d+) requests in ([0-9.]+[a-z]+)", text)
    if not done:
        raise OutputError(f"wrk: no count of requests in {text[-400:]!r}")
    latencies = re.findall(r"^\s+(50|75|90|99)%\s+(\S+)$", text, re.MULTILINE)
    errors = {}
    socket = re.search(r"Socket errors: (.*)", text)
    for entry in socket.group(1).split(", ") if socket else []:
        kind, count = entry.rsplit(" ", 1)
        if int(count):
            errors[kind] = int(count)
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    if bad:
        errors["status"] = int(bad.group(1))
    return {"requests": int(done.group(1)), "seconds": micros_of(done.group(2)) / 1e6, "errors": errors,
            "latency_micros": {f"p{share}": micros_of(value) for share, value in latencies}}


def h2load_command(url: str, connections: int, outstanding: int, seconds: float) -> list:
    return ["h2load", "--clients", connections, "--max-concurrent-streams", outstanding, "--threads", "1",
            "--duration", f"{round(seconds * 1000)}ms", url]


def parse_h2load(text: str) -> dict:
    done = re.search(r"requests: .*?(\d+) done, (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout", text)
    status = re.search(r"status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", text)
    time = re.search(r"finished in ([0-9.]+[a-z]+)", text)
    if not (done and status and time):
        raise OutputError(f"h2load: no counts in {text[-400:]!r}")
    counts = {"failed": done.group(3), "timeout": done.group(5), "4xx": status.group(3), "5xx": status.group(4)}
    errors = {kind: int(count) for kind, count in counts.items() if int(count)}
    return {"requests": int(done.group(2)), "seconds": micros_of(time.group(1)) / 1e6, "errors": errors,
            "latency_micros": {}}


def load_command(trunkline: str, url: str, ca: str, report: str, **options) -> list:
    """`trunkline load`; options as the command has them, with `_` for `-`; True for those without a value."""
    command = [trunkline, "load", url, "--json", report, "--quiet"]
    if not url.startswith("http://"):
        command += ["--ca", ca]
    for name, value in options.items():
        if value is None or value is False:
            continue
        flag = "--" + name.replace("_", "-")
        command.extend([flag] if value is True else [flag, str(value)])
    return command


def parse_load(text: str) -> dict:
    try:
        said = json.loads(text)
        errors = {kind: count for kind, count in {**said["errors"], **said["receipts"]}.items() if count}
        if (said.get("idle") or {}).get("lost"):
            errors["lost while idle"] = said["idle"]["lost"]
        reading = {"requests": said["requests"], "seconds": said["seconds"], "errors": errors}
        for name in ("latency_micros", "first_answer_micros", "connect_micros", "handshake_micros", "kinds",
                     "late_starts", "cpu_micros", "connections_opened"):
            reading[name] = said.get(name)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise OutputError(f"trunkline load: {error!r} in {text[-400:]!r}") from None
    return reading


def parse_status(text: str) -> int:
    """Requests so far, of nginx's stub_status."""
    match = re.search(r"server accepts handled requests\s+\d+ \d+ (\d+)", text)
    if not match:
        raise OutputError(f"status of the origin: {text!r}")
    return int(match.group(1))
