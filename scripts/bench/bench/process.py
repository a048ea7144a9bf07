"""Processes of a run: started with a log, pinned, accounted for with all their children, and ended by their ids."""

import os
import signal
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
# Kind of a kernel clock: CPU time of a whole thread group as the scheduler counts it, in nanoseconds (CPUCLOCK_SCHED).
CLOCK_OF_PROCESS = 2
# A POP whose clients have gone without a word drains for longer; nothing is measured of it any more.
STOP_PATIENCE_S = 3.0
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class ProcessEnded(Exception):
    """A process that should run does not."""


@dataclass
class Memory:
    """Bytes resident, shared pages divided by their users; `anonymous` without files and shared memory."""

    whole: int
    anonymous: int


def children_of(pid: int) -> list:
    """Children of all threads of a process; none if it has gone."""
    found = []
    for task in (PROC / str(pid) / "task").glob("*/children"):
        try:
            found.extend(int(child) for child in task.read_text().split())
        except OSError:
            continue
    return found


def tree_of(pid: int) -> list:
    """The process and all its descendants, itself first."""
    found = [pid]
    for process in found:
        found.extend(children_of(process))
    return found


def cpu_ns(pid: int) -> int:
    """User and system time of a process and its descendants, in nanoseconds, threads that have ended included.

    The clock of the thread group agrees with utime + stime of /proc/PID/stat, whose unit is 10 ms, and with the sum
    of its threads' schedstat, which forgets threads that end (io_uring's helpers do). Descendants that have ended
    are not in it: contestants have none.
    """
    spent = 0
    for process in tree_of(pid):
        try:
            spent += time.clock_gettime_ns((~process << 3) | CLOCK_OF_PROCESS)
        except OSError:
            continue
    return spent


def parse_rollup(text: str) -> Memory:
    """What /proc/PID/smaps_rollup says."""
    sizes = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3 and words[2] == "kB":
            sizes[words[0].rstrip(":")] = int(words[1]) * 1024
    if "Pss" not in sizes or "Pss_Anon" not in sizes:
        raise ProcessEnded("smaps_rollup has no Pss: the process has ended, or the kernel is older than 5.0")
    return Memory(sizes["Pss"], sizes["Pss_Anon"])


def memory_of(pid: int) -> Memory:
    """Memory of a process and its descendants."""
    whole = Memory(0, 0)
    for process in tree_of(pid):
        part = parse_rollup((PROC / str(process) / "smaps_rollup").read_text())
        whole = Memory(whole.whole + part.whole, whole.anonymous + part.anonymous)
    return whole


class Process:
    """One started process, its log and its end."""

    def __init__(self, name: str, command: list, log: Path, core: int | None = None, stdout: Path | None = None,
                 stdin=subprocess.DEVNULL):
        if core is not None:
            command = ["taskset", "--cpu-list", str(core), *command]
        self.name, self.log, self.command = name, log, [str(word) for word in command]
        with open(log, "ab") as errors, open(stdout or log, "ab") as output:
            self.popen = subprocess.Popen(self.command, stdin=stdin, stdout=output, stderr=errors,
                                          start_new_session=True)

    @property
    def pid(self) -> int:
        return self.popen.pid

    def check(self) -> None:
        """Raises if it has ended."""
        if self.popen.poll() is not None:
            raise ProcessEnded(f"{self.name} has ended with {self.popen.returncode}: {self.tail()}")

    def tail(self, bytes_max: int = 1500) -> str:
        return self.log.read_bytes()[-bytes_max:].decode(errors="replace")

    def wait(self, timeout_s: float) -> int:
        """Exit code. One that takes longer than it may is ended, and counts as failed."""
        try:
            return self.popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.stop()
            raise ProcessEnded(f"{self.name} was not done after {timeout_s:.0f} s: {self.tail()}") from None

    def ask_to_end(self) -> None:
        """Asks it and its descendants, unless it has ended."""
        if self.popen.poll() is None:
            for pid in tree_of(self.pid):
                send(pid, signal.SIGTERM)

    def stop(self) -> None:
        """Ends it and its descendants, gently first."""
        self.ask_to_end()
        try:
            self.popen.wait(STOP_PATIENCE_S)
        except subprocess.TimeoutExpired:
            for pid in tree_of(self.pid):
                send(pid, signal.SIGKILL)
            self.popen.wait()


@contextmanager
def undisturbed():
    """Signals that end the bench wait until what is done here is done: half of an end leaves the other half behind."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDINGS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
