#!/usr/bin/env python3
"""Measures one set of emulated links with ping and flows and compares with the plan that `link describe` gives on standard input.

Run by net-check.sh: net_check.py NET_SH PROFILE SECONDS_OF_PING. Prints rows of a table; exit 1 when one is out of bounds.

Bounds are four standard deviations of what chance allows for the number of samples, plus what a machine may add: 1 ms of time,
1 % of throughput: an honest emulator fails about once in 15 000 rows. Exit 3: the machine held up the emulator for longer than
HELD_UP_MS, or a sender from its rate, so that nothing follows from the figures.
"""

import json
import math
import re
import statistics
import subprocess
import sys
import tempfile

NET, PROFILE, PING_SECONDS = sys.argv[1], sys.argv[2], float(sys.argv[3])
PLANS = json.load(sys.stdin)
MS = 1e6
PING_BYTES = 84
PING_INTERVAL = 0.02
FLOW_BYTES = 1400
FLOW_SECONDS = 8.0
FLOW_EXCESS = 1.5
DEVIATIONS = 4
MACHINE_MS = 1.0
TCP_MBIT_MIN = 200
HELD_UP_MS = 50
OUTSIDE_SHARE_MAX = 0.05
# Stretch: the ends with their addresses, the client's first.
STRETCHES = {
    "phone_pop": (("phone", "10.77.1.1"), ("pop", "10.77.1.2")),
    "pop_dc": (("pop", "10.77.2.1"), ("dc", "10.77.2.2")),
    "phone_dc": (("phone", "10.77.3.1"), ("dc", "10.77.3.2")),
}
failures = 0


def row(stretch, what, asked, seen, within, unit, at_least=False):
    global failures
    good = seen >= asked if at_least else abs(seen - asked) <= within
    failures += not good
    bound = "at least" if at_least else f"± {within:.2f}"
    print(f"| {PROFILE} | {stretch} | {what} | {asked:.2f} {unit} | {seen:.2f} {unit} | {bound} | {'ok' if good else '**NO**'} |", flush=True)


def net(*words):
    return subprocess.run([NET, *words], check=True, capture_output=True, text=True).stdout


def sending_ms(course, size):
    rate = course["rate_bits_per_s"]
    return size * 8000 / rate if rate else 0.0


def loss_of(course):
    """Share of packets lost, and how many times the variance exceeds that of independent losses."""
    loss = course["loss"]
    if "independent" in loss:
        return loss["independent"]["chance"], 1.0
    enter, leave, inside = (loss["bursts"][name] for name in ("enter", "leave", "inside"))
    kept = 1 - enter - leave
    return inside * enter / (enter + leave), (1 + kept) / (1 - kept)


# ---- ping ----


def start_ping(stretch):
    (near, _), (_, address) = STRETCHES[stretch]
    count = str(int(PING_SECONDS / PING_INTERVAL))
    command = [NET, "exec", near, "ping", "-n", "-D", "-i", str(PING_INTERVAL), "-c", count, "-W", "6", address]
    # A file takes all that ping says, while a pipe that nobody reads would make it wait.
    said = tempfile.TemporaryFile("w+")
    return subprocess.Popen(command, stdout=said), said


def read_ping(process, said):
    """Every echo request: when it was sent (seconds, time of day), and how long it took (ms) or None."""
    pattern = re.compile(r"\[([0-9.]+)\] \d+ bytes from .* icmp_seq=(\d+) .*time=([0-9.]+) ms")
    came = {}
    duplicates = 0
    process.wait()
    said.seek(0)
    for found in pattern.finditer(said.read()):
        number, took = int(found[2]), float(found[3])
        duplicates += number in came
        came[number] = (float(found[1]) - took / 1000, took)
    if not came:
        return [(0.0, None)] * int(PING_SECONDS / PING_INTERVAL), duplicates
    # Times of day are told when ping gets to print, so they are only as good as its share of the machine.
    known = sorted((number, sent) for number, (sent, _) in came.items())
    for (number, sent), (number_next, sent_next) in zip(known, known[1:]):
        astray = abs(sent_next - sent - (number_next - number) * PING_INTERVAL)
        if number_next - number <= 10 and astray > HELD_UP_MS / 1000:
            print(f"{PROFILE}: ping was held up for {astray * 1000:.0f} ms", file=sys.stderr)
            sys.exit(3)
    # A lost request was sent about when its neighbours were.
    requests, (number_known, (sent_known, _)) = [], min(came.items())
    for number in range(1, int(PING_SECONDS / PING_INTERVAL) + 1):
        if number in came:
            number_known, sent_known = number, came[number][0]
        requests.append((sent_known + (number - number_known) * PING_INTERVAL, came.get(number, (0, None))[1]))
    return requests, duplicates


def windows(plan, began, until):
    """Each phase of the plan with the times at which it held."""
    start, index, phases = began, 0, plan["phases"]
    while start < until:
        phase = phases[index % len(phases)]
        end = math.inf if phase["duration_ns"] is None else start + phase["duration_ns"] / 1e9
        yield index % len(phases), start, end
        start, index = end, index + 1


def check_ping(stretch, requests, duplicates, began):
    plan = PLANS[stretch]
    if duplicates:
        row(stretch, "ping, doubled", 0, duplicates, 0, "")
    by_phase = {}
    for index, start, end in windows(plan, began, requests[-1][0] + 1):
        # Those that were wholly on this path: they would have been back before it changed.
        rtt = sum(course["delay_ns"] + course["jitter_ns"] for course in plan["phases"][index]["courses"]) / 1e9
        inside = [took for sent, took in requests if start + 0.01 <= sent and sent + rtt + 0.05 < end]
        by_phase.setdefault(index, []).extend(inside)
    for index, inside in by_phase.items():
        phase = plan["phases"][index]
        name = f"{phase['name']}: " if len(plan["phases"]) > 1 else ""
        if inside:
            check_phase(stretch, name, phase["courses"], inside)


def check_phase(stretch, name, courses, inside):
    returned = [took for took in inside if took is not None]
    seen_loss = 100 * (1 - len(returned) / len(inside))
    if any(course["is_blackout"] for course in courses):
        row(stretch, f"{name}ping, lost", 100, seen_loss, 0, "%")
        return
    (there, there_factor), (back, back_factor) = (loss_of(course) for course in courses)
    asked_loss = 1 - (1 - there) * (1 - back)
    factor = max(there_factor, back_factor)
    deviation = math.sqrt(asked_loss * (1 - asked_loss) * factor / len(inside))
    row(stretch, f"{name}ping, lost", 100 * asked_loss, seen_loss, 100 * DEVIATIONS * deviation, "%")
    asked = sum(course["delay_ns"] / MS + sending_ms(course, PING_BYTES) for course in courses)
    # The delay wanders between points twice the jitter apart, each of variance jitter^2 / 3.
    jitters = [course["jitter_ns"] / MS for course in courses]
    span_ms = len(inside) * PING_INTERVAL * 1000
    deviation = math.sqrt(sum(jitter**2 / 3 * min(1, 2 * jitter / span_ms) for jitter in jitters))
    row(stretch, f"{name}ping, mean RTT", asked, statistics.fmean(returned), DEVIATIONS * deviation + MACHINE_MS, "ms")
    if any(jitters):
        # What lies outside is the machine's doing, as long as it is rare; it says nothing about the jitter.
        near = [took for took in returned if abs(took - asked) <= sum(jitters) + MACHINE_MS]
        row(stretch, f"{name}ping, outside of jitter", 0, 100 * (1 - len(near) / len(returned)), 100 * OUTSIDE_SHARE_MAX, "%")
        # Two thirds of that variance, on average along the lines.
        asked = math.sqrt(sum(jitter**2 * 2 / 9 for jitter in jitters))
        points = span_ms / (2 * max(jitters))
        within = asked * DEVIATIONS / math.sqrt(2 * points) + MACHINE_MS
        row(stretch, f"{name}ping, deviation", asked, statistics.pstdev(near or returned), within, "ms")


# ---- flows ----

RECEIVE = """
import socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.setsockopt(socket.SOL_SOCKET, 33, 1 << 24)  # SO_RCVBUFFORCE: beyond the limit of others
s.bind((sys.argv[1], 7001)); s.settimeout(30)
print("ready", flush=True)
got = []
try:
    while True:
        data = s.recv(2048)
        now = time.monotonic_ns()
        if not got: s.settimeout(float(sys.argv[2]))
        got.append((int(data[:20]), now))
except TimeoutError: pass
for sent, came in got: print(sent, came)
"""
SEND = """
import socket, sys, time
address, size, rate, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
start = time.monotonic_ns(); gap = size * 8e9 / rate; number = 0
while number * gap < seconds * 1e9:
    now = time.monotonic_ns()
    while start + number * gap <= now:
        s.sendto(b"%020d" % time.monotonic_ns() + bytes(size - 28 - 20), (address, 7001)); number += 1
    time.sleep(0.001)
print((time.monotonic_ns() - start) / 1e9)
"""


def run_in(place, code, *words):
    return subprocess.Popen([NET, "exec", place, "python3", "-c", code, *map(str, words)], stdout=subprocess.PIPE, text=True)


def check_flows(stretch):
    """Both directions at once, each half above its rate: what arrives is the rate less the losses, after a full queue."""
    phase = PLANS[stretch]["phases"][0]
    courses, ends = phase["courses"], STRETCHES[stretch]
    if any(course["rate_bits_per_s"] is None for course in courses):
        return
    seconds = min(FLOW_SECONDS, (phase["duration_ns"] or math.inf) / 1e9 - 2)
    # The client is the sender towards the origin, and the other way round.
    ways = [("to origin", courses[0], ends[0], ends[1]), ("to client", courses[1], ends[1], ends[0])]
    receivers = []
    for _, course, _, (place, address) in ways:
        wait = 2 + (course["delay_ns"] + course["jitter_ns"]) / 1e9
        receivers.append(run_in(place, RECEIVE, address, wait + 2))
        receivers[-1].stdout.readline()
    net("begin")
    senders = [
        run_in(near, SEND, address, FLOW_BYTES, course["rate_bits_per_s"] * FLOW_EXCESS, seconds)
        for _, course, (near, _), (_, address) in ways
    ]
    for sender in senders:
        took = float(sender.communicate()[0])
        if took > seconds * 1.05:
            print(f"{PROFILE}: a sender took {took:.1f} s for {seconds:.1f} s of packets", file=sys.stderr)
            sys.exit(3)
    for (way, course, _, _), receiver in zip(ways, receivers):
        got = [tuple(map(int, line.split())) for line in receiver.communicate()[0].splitlines()]
        judge_flow(stretch, way, course, got)


def judge_flow(stretch, way, course, got):
    if len(got) < 10:
        row(stretch, f"flow {way}", course["rate_bits_per_s"] / 1e6, 0, 0, "Mbit/s")
        return
    span_s = (got[-1][1] - got[0][1]) / 1e9
    loss, factor = loss_of(course)
    rate_mbit = course["rate_bits_per_s"] / 1e6
    asked = rate_mbit * (1 - loss)
    deviation = math.sqrt(loss * (1 - loss) * factor / len(got))
    jitter = 2 * course["jitter_ns"] / 1e9 / span_s
    within = rate_mbit * (DEVIATIONS * deviation + jitter + 0.01)
    row(stretch, f"UDP flow {way}", asked, (len(got) - 1) * FLOW_BYTES * 8 / 1e6 / span_s, within, "Mbit/s")
    # The queue has filled once what exceeds the rate has filled it; from then on every packet waits for all of it. The median, since a busy
    # machine holds back the sender at times.
    fill_ns = course["queue_bytes_max"] * 8e9 / (course["rate_bits_per_s"] * (FLOW_EXCESS - 1))
    full = [(came - sent) / MS for sent, came in got if sent - got[0][0] > fill_ns * 1.1]
    if len(full) >= 50:
        asked = course["delay_ns"] / MS + course["queue_bytes_max"] * 8000 / course["rate_bits_per_s"]
        within = sending_ms(course, FLOW_BYTES) + course["jitter_ns"] / MS + 2 * MACHINE_MS
        row(stretch, f"delay {way} behind a full queue", asked, statistics.median(full), within, "ms")


def check_tcp(stretch):
    """Without a limit: what the emulator can carry."""
    (near, _), (far, address) = STRETCHES[stretch]
    sink = """
import socket, sys, time
s = socket.create_server((sys.argv[1], 7002)); print("ready", flush=True)
c, _ = s.accept(); total = 0; start = time.monotonic()
while data := c.recv(1 << 20): total += len(data)
print(total * 8e-6 / (time.monotonic() - start))
"""
    source = """
import socket, sys, time
c = socket.create_connection((sys.argv[1], 7002)); data = bytes(1 << 18); end = time.monotonic() + 5
while time.monotonic() < end: c.sendall(data)
"""
    receiver = run_in(far, sink, address)
    receiver.stdout.readline()
    run_in(near, source, address).wait()
    row(stretch, "TCP flow", TCP_MBIT_MIN, float(receiver.communicate()[0]), 0, "Mbit/s", at_least=True)


def is_nothing(stretch):
    courses = PLANS[stretch]["phases"][0]["courses"]
    return all(course["rate_bits_per_s"] is None and course["delay_ns"] == 0 for course in courses)


def check_machine(what):
    """Whether packets left when they were due, as the emulator itself counts it."""
    stats = json.loads(net("stats"))
    for link in stats["links"]:
        late = link["late"]
        if link["to_origin"]["offered"]:
            print(f"{PROFILE} {link['name']}, {what}: packets left {late['mean_micros']:.0f} us late on average, "
                  f"{late['max_micros']:.0f} at worst, {late['above_1ms']} more than 1 ms", file=sys.stderr)
    if stats["held_up_max_micros"] > HELD_UP_MS * 1000:
        print(f"{PROFILE}: the emulator was held up for {stats['held_up_max_micros'] / 1000:.0f} ms", file=sys.stderr)
        sys.exit(3)


def main():
    net("begin")
    began = json.loads(net("stats"))["began_unix_micros"] / 1e6
    pings = {stretch: start_ping(stretch) for stretch in STRETCHES}
    for stretch, ping in pings.items():
        check_ping(stretch, *read_ping(*ping), began)
    check_machine("ping")
    for stretch in STRETCHES:
        check_flows(stretch)
        if is_nothing(stretch):
            net("begin")
            check_tcp(stretch)
        check_machine("flows")
    sys.exit(failures > 0)


main()
