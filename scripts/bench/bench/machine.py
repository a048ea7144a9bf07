"""What the bench runs on, and whether anything else runs there as well."""

import os
import platform
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

# Below this share of idle time before a run, figures are not to be trusted.
IDLE_SHARE_MIN = 0.90
# Of the time of a core that the host may take from this machine, before a run and within a turn.
STEAL_SHARE_MAX = 0.02


@dataclass
class CoreTicks:
    """Time of one core since boot, in clock ticks."""

    busy: int
    idle: int
    steal: int


def parse_stat(text: str) -> dict:
    """Core number to its times, of /proc/stat."""
    cores = {}
    for match in re.finditer(r"^cpu(\d+) (.*)$", text, re.MULTILINE):
        user, nice, system, idle, iowait, irq, softirq, steal = (int(word) for word in match.group(2).split()[:8])
        cores[int(match.group(1))] = CoreTicks(user + nice + system + irq + softirq, idle + iowait, steal)
    return cores


def core_ticks() -> dict:
    return parse_stat(Path("/proc/stat").read_text())


def share(before: dict, after: dict, part: str) -> float:
    """Share of a part of the time of all cores between two readings."""
    whole = spent = 0
    for core, late in after.items():
        early = before[core]
        spent += getattr(late, part) - getattr(early, part)
        whole += (late.busy + late.idle + late.steal) - (early.busy + early.idle + early.steal)
    return spent / whole if whole else 0.0


def steal_share(before: dict, after: dict) -> float:
    """The greatest share that any core has lost to the host between two readings."""
    return max((share({core: before[core]}, {core: after[core]}, "steal") for core in after if core in before), default=0.0)


def quietness(seconds: float) -> dict:
    """Idle and stolen share of all cores while nothing of the bench runs."""
    before = core_ticks()
    time.sleep(seconds)
    after = core_ticks()
    return {"idle_share": share(before, after, "idle"), "steal_share": share(before, after, "steal")}


def warnings_of(quiet: dict) -> list:
    """What a reader must know before he believes a figure."""
    warnings = []
    if quiet["idle_share"] < IDLE_SHARE_MIN:
        warnings.append(f"the machine was busy before the run: {quiet['idle_share']:.0%} idle, wanted "
                        f"{IDLE_SHARE_MIN:.0%}; stop what else runs, and run again")
    if quiet["steal_share"] > STEAL_SHARE_MAX:
        warnings.append(f"the host took {quiet['steal_share']:.0%} of the time from this machine; "
                        "ratios may still hold, times do not")
    return warnings


def first_line(command: list) -> str:
    """What a program says of itself; empty if it is not there, or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    if done.returncode:
        return ""
    return ((done.stdout + done.stderr).strip().splitlines() or [""])[0].strip()


def processor() -> str:
    match = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return match.group(1) if match else platform.machine()


def is_virtual() -> bool:
    return "hypervisor" in Path("/proc/cpuinfo").read_text().split("flags", 1)[-1].split("\n", 1)[0]


def siblings_of(core: int) -> list:
    """Cores that share a physical one with this, itself among them; itself alone where the kernel does not tell."""
    try:
        text = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list").read_text()
    except OSError:
        return [core]
    return parse_cores(text)


def parse_cores(text: str) -> list:
    """`0-1,4` as the kernel writes it."""
    found = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        found.extend(range(int(first), int(last or first) + 1))
    return found


def commit_of(root: Path, is_built_here: bool) -> str:
    """Commit that a binary was built from; only of one that is built from this checkout is it known."""
    if not is_built_here:
        return "a binary that TRUNKLINE names, commit unknown"
    return first_line(["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]) or "commit unknown"


def description(trunkline: str, root: Path, is_built_here: bool) -> dict:
    """Machine, kernel and versions, as they go into every result."""
    release = Path("/etc/os-release").read_text() if Path("/etc/os-release").exists() else ""
    system = re.search(r'^PRETTY_NAME="(.*)"$', release, re.MULTILINE)
    memory = re.search(r"^MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text(), re.MULTILINE)
    commit = commit_of(root, is_built_here)
    return {
        "processor": processor(), "cores": os.cpu_count(), "virtual": is_virtual(),
        "memory_gib": round(int(memory.group(1)) / 2**20) if memory else None,
        "kernel": platform.release(), "system": system.group(1) if system else platform.system(),
        "versions": {
            "Trunkline": f"{first_line([trunkline, '--version']).removeprefix('trunkline ')} ({commit})",
            "nginx": first_line(["nginx", "-v"]).removeprefix("nginx version: nginx/"),
            "HAProxy": first_line(["haproxy", "-v"]).removeprefix("HAProxy version ").split(" ")[0],
            "wrk": package_version("wrk"), "h2load": package_version("nghttp2-client"),
            "OpenSSL": first_line(["openssl", "version"]).removeprefix("OpenSSL ").split(" ")[0],
        },
    }


def package_version(package: str) -> str:
    return first_line(["dpkg-query", "--showformat", "${Version}", "--show", package])
