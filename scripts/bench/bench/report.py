"""From results to words: tables for the terminal, docs/BENCHMARKS.md from its template, and the charts beside it."""

import json
import shlex
from dataclasses import asdict
from pathlib import Path

from . import cases, charts, machine, stats, targets, template

TEMPLATE = Path(__file__).resolve().parent.parent / "BENCHMARKS.template.md"
NOT_MEASURED = "*Not measured.*"
# A difference smaller than this is noise, and no loss. The page names it.
LOSS_SHARE_MIN = 0.03
# Time of the contestant's core that went to others, above which figures are marked. Interrupts are counted by tick and
# are not the contestant's by its own clock: some is normal.
FOREIGN_SHARE_MAX = 0.15
# Ratios of two runs agree within this.
AGREEMENT_SHARE = 0.10
APART, APART_LIKE_ROUNDS = "  MORE THAN 10 %", ", no more than rounds of one run"

# Per group of cases: columns of its table (metric, heading, how many micros or bytes a unit has), the first one is drawn.
MICROS_MS = 1000.0
CPU = ("cpu_micros", "CPU, µs", 1.0)
CHAIN = ("chain_cpu_micros", "with its gateway, µs", 1.0)
RATE = ("requests_per_s", "per second", 1.0)
COLUMNS = {
    "small": (CPU, CHAIN, RATE, ("p50_micros", "p50, ms", MICROS_MS), ("p99_micros", "p99, ms", MICROS_MS)),
    "mmtp": (CPU, CHAIN, RATE, ("p50_micros", "p50, ms", MICROS_MS), ("p99_micros", "p99, ms", MICROS_MS)),
    "bulk": (CPU, CHAIN, RATE),
    "new": (CPU, CHAIN, RATE, ("first_answer_p50_micros", "first answer p50, ms", MICROS_MS),
            ("first_answer_p99_micros", "first answer p99, ms", MICROS_MS)),
    "idle": (("memory_bytes", "bytes of its own", 1.0), ("memory_pss_bytes", "with its share of shared memory", 1.0)),
    "mixed": (("p99_micros", "p99, ms", MICROS_MS), ("p50_micros", "p50, ms", MICROS_MS),
              ("bulk_mib_per_s", "downloads, MiB/s", 1.0)),
    "half-load": (("p99_micros", "p99, ms", MICROS_MS), ("p50_micros", "p50, ms", MICROS_MS),
                  ("p99.9_micros", "p99.9, ms", MICROS_MS), CPU, RATE),
    "link": (("first_answer_p50_micros", "first answer p50, ms", MICROS_MS),
             ("first_answer_p90_micros", "first answer p90, ms", MICROS_MS), ("p50_micros", "whole answer p50, ms", MICROS_MS),
             ("p90_micros", "whole answer p90, ms", MICROS_MS), ("connections", "connections", 1.0)),
}
CHART_TITLES = {
    "small": ("CPU per small request", "µs of CPU of the proxy's process, 281-byte body; median (min–max), shorter is better"),
    "mmtp": ("CPU per MMTP request", "µs of CPU of the proxy's process; median (min–max), shorter is better"),
    "bulk": ("CPU per body of 1 MiB", "µs of CPU of the proxy's process; median (min–max), shorter is better"),
    "new": ("CPU per new connection", "connect, handshake, one request, close; µs of CPU; shorter is better"),
    "idle": ("Memory per idle connection", "bytes of the process's own memory; shorter is better"),
    "mixed": ("p99 of small requests beside downloads", "milliseconds, open loop; median (min–max), shorter is better"),
    "half-load": ("p99 at half of nginx's saturation rate", "milliseconds, open loop; median (min–max), shorter is better"),
    "link": ("Over a poor network", "median time to the first answer (last group: to the end of it), milliseconds"),
}
# More is better for these; less for all others.
GAINS = {"requests_per_s", "bulk_mib_per_s", "connections"}
# What is no contest: how many connections there were says how many answers a figure stands on.
UNJUDGED = {"connections"}
# Why a case was disturbed: metric, most that is normal, words.
DISTURBANCES = (
    ("foreign_share", FOREIGN_SHARE_MAX, "others used the contestant's core"),
    ("foreign_other_share", FOREIGN_SHARE_MAX, "others used the core of clients and origin"),
    ("steal_share", machine.STEAL_SHARE_MAX, "the host took a core's time"),
)


def command_of(words: list) -> str:
    return shlex.join(["scripts/bench/run.sh", *words])


def results_in(directory: Path) -> dict:
    """Results by case, in the order of the table of cases."""
    found = {}
    for case in cases.CASES:
        path = directory / f"{case.name}.json"
        if path.exists():
            result = json.loads(path.read_text())
            # By the targets as they are now, whatever they were when it was measured.
            found[case.name] = result | {"targets": targets.judged(case.name, result["samples"])}
    return found


def title_of(result: dict, label: str) -> str:
    """Words for a label, which may carry a phase behind the contestant's name."""
    name, _, phase = label.partition(" ")
    words = result["titles"].get(name, name)
    return f"{words}, {phase}" if phase else words


def spread_text(spread: dict | None, unit: float) -> str:
    """A figure with the least and the greatest of the rounds."""
    if not spread:
        return "–"
    told = charts.number(spread["median"] / unit)
    if spread["count"] > 1:
        told += f" ({charts.number(spread['min'] / unit)}–{charts.number(spread['max'] / unit)})"
    return told


def ratio_text(ratio: dict | None) -> str:
    """A ratio with the quartiles of the rounds."""
    if not ratio:
        return "not measured"
    tell = charts.ratio_format(ratio["median"])
    middle, low, high = (tell(ratio[part]) for part in ("median", "q1", "q3"))
    return f"{middle} ({low}–{high})" if ratio["count"] > 1 else middle


def pace_text(rounds: int, seconds: float) -> str:
    return f"{rounds} round{'s' if rounds > 1 else ''} of {seconds:g} s"


def drawn_metric(result: dict) -> tuple:
    """The column that a case is drawn and compared by."""
    columns = COLUMNS[result["group"]]
    return columns[2] if result["case"] == "link-body" else columns[0]


def phase_of(label: str) -> str:
    return label.partition(" ")[2]


def shares_of(result: dict) -> dict:
    """What the first contestant has of each other one in the same phase, paired by rounds: (label, other) to a spread."""
    found, metric = {}, drawn_metric(result)[0]
    labels = list(result["summary"])
    name = labels[0].partition(" ")[0] if labels else ""
    for other in labels:
        label = " ".join(filter(None, (name, phase_of(other))))
        ratio = stats.ratio_of(result["samples"], label, other, metric) if label != other else None
        if ratio:
            found[label, other] = asdict(ratio)
    return found


def rows_of(result: dict) -> tuple:
    """Headings and rows of a case's table; the last column is the first contestant's share of each."""
    summary = result["summary"]
    columns = [column for column in COLUMNS[result["group"]] if any(column[0] in figures for figures in summary.values())]
    shares = {other: ratio_text(ratio) for (_, other), ratio in shares_of(result).items()}
    rows = [[title_of(result, label), *(spread_text(figures.get(name), unit) for name, _, unit in columns), shares.get(label, "")]
            for label, figures in summary.items()]
    return ["", *(heading for _, heading, _ in columns), "first / this"], rows


def case_text(result: dict) -> str:
    """For the terminal."""
    if not result["summary"]:
        return ""
    heads, rows = rows_of(result)
    widths = [max(len(row[index]) for row in [heads, *rows]) for index in range(len(heads))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in [heads, *rows]]
    lines += [f"{verdict_word(verdict)}  {verdict_text(result, verdict)}" for verdict in result["targets"]]
    return "\n".join([*lines, *disturbance_of(result)]) + "\n"


def verdict_word(verdict: dict) -> str:
    return {True: "met   ", False: "MISSED", None: "no figure"}[verdict["met"]]


def verdict_text(result: dict, verdict: dict) -> str:
    return (f"{title_of(result, verdict['label'])} / {title_of(result, verdict['other'])}: {ratio_text(verdict['ratio'])}, "
            f"at most {verdict['limit']:.2f}")


def markdown(heads: list, rows: list) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def errors_of(result: dict) -> list:
    """Errors by label, summed over rounds."""
    told = []
    for label in result["summary"]:
        sums = {}
        for sample in result["samples"]:
            if sample["label"] == label:
                for kind, count in sample["errors"].items():
                    sums[kind] = sums.get(kind, 0) + count
        told += [f"{title_of(result, label)}: {count} × {kind}" for kind, count in sums.items()]
    return told


def disturbance_of(result: dict) -> list:
    """Labels beside which others used a core, or the host took one, in words."""
    lines = []
    for metric, share_max, words in DISTURBANCES:
        shares = {label: stats.median_of(result["summary"], label, metric) for label in result["summary"]}
        told = [f"{title_of(result, label)} {share:.0%}" for label, share in shares.items()
                if share is not None and share > share_max]
        lines += [f"DISTURBED: {words} beside {', '.join(told)}."] if told else []
    return lines


def unfinished_of(result: dict) -> list:
    """What was under way when turns ended, by label, summed over rounds."""
    sums = {label: sum(sample["figures"].get("unfinished") or 0 for sample in result["samples"] if sample["label"] == label)
            for label in result["summary"]}
    told = [f"{title_of(result, label)} {count:g}" for label, count in sums.items() if count]
    return [f"Under way at the end of a turn, and in no figure: {', '.join(told)}."] if told else []


def again_of(result: dict) -> list:
    """Turns that were taken once more, in words."""
    told = [f"{title_of(result, entry['label'])}, round {entry['round'] + 1} ({one_line(entry['reason'], 160)})"
            for entry in result.get("again", [])]
    return [f"Taken once more: {'; '.join(told)}."] if told else []


def case_markdown(result: dict) -> str:
    """A case's table with what a reader must know about it."""
    parts = [f"**{result['title']}** (`--only {result['case']}`, {pace_text(result['rounds'], result['seconds'])})", ""]
    if result["skipped"]:
        return "\n".join([*parts, f"Skipped: {result['skipped']}."])
    parts.append(markdown(*rows_of(result)))
    absent = [f"Without {title_of(result, label)}: {one_line(reason)}." for label, reason in result["absent"].items()]
    errors = [f"Errors: {'; '.join(errors_of(result))}."] if errors_of(result) else []
    notes = [*absent, *errors, *unfinished_of(result), *again_of(result), *disturbance_of(result)]
    return "\n".join([*parts, *([""] if notes else []), *notes])


def one_line(words: str, length_max: int = 300) -> str:
    return " ".join(words.split())[:length_max].rstrip(".")


def group_markdown(results: dict, group: str, charts_path: str) -> str:
    members = [result for result in results.values() if result["group"] == group]
    if not members:
        return NOT_MEASURED
    drawing = [f"![{CHART_TITLES[group][0]}]({charts_path}/{group}.svg)"] if any(m["summary"] for m in members) else []
    return "\n\n".join([*drawing, *(case_markdown(result) for result in members)])


def targets_markdown(results: dict) -> str:
    rows = []
    for result in results.values():
        for verdict in result["targets"]:
            rows.append([str(verdict["point"]), result["title"], title_of(result, verdict["label"]),
                         title_of(result, verdict["other"]), COLUMN_WORDS[verdict["metric"]], ratio_text(verdict["ratio"]),
                         f"{verdict['limit']:.2f}", {True: "met", False: "**missed**", None: "–"}[verdict["met"]]])
    if not rows:
        return NOT_MEASURED
    table = markdown(["", "case", "figure of", "over", "what", "ratio", "at most", ""], rows)
    older = older_than_newest(results)
    return f"{table}\n\nNot of the newest run, see the list of runs: {', '.join(older)}." if older else table


def older_than_newest(results: dict) -> list:
    """Cases whose figures are of an earlier run than those of others."""
    newest = max(result["run"]["at"] for result in results.values())
    return [name for name, result in results.items() if result["run"]["at"] != newest]


COLUMN_WORDS = {"cpu_micros": "CPU", "p99_micros": "p99", "first_answer_p50_micros": "median time to first answer"}


def losses_of(result: dict) -> list:
    """Where a Trunkline contestant is behind one of the others by more than noise, in words."""
    words = {name: heading for name, heading, _ in COLUMNS[result["group"]]}
    told = []
    for label in result["summary"]:
        if not label.startswith("pop") or "elsewhere" in label:
            continue
        for metric in result["summary"][label]:
            if metric not in words or metric in UNJUDGED:
                continue
            told += loss(result, label, metric, words[metric])
    return told


def loss(result: dict, label: str, metric: str, words: str) -> list:
    """One line if the best of the others of the same phase is better."""
    summary, behind = result["summary"], {}
    for other in summary:
        if not other.startswith("pop") and phase_of(other) == phase_of(label):
            pair = (other, label) if metric in GAINS else (label, other)
            ratio = stats.ratio_of(result["samples"], *pair, metric)
            behind |= {other: ratio.median} if ratio else {}
    best = max(behind, key=behind.get, default=None)
    if best is None or behind[best] <= 1 + LOSS_SHARE_MIN:
        return []
    unit = next(unit for name, _, unit in COLUMNS[result["group"]] if name == metric)
    own, others = (charts.number(stats.median_of(summary, name, metric) / unit) for name in (label, best))
    return [f"- {result['title']}: {title_of(result, label)}, {words}: {own}; {title_of(result, best)}: {others} "
            f"({behind[best]:.2f} times better)"]


def losses_markdown(results: dict) -> str:
    lines = [line for result in results.values() for line in losses_of(result)]
    # Nothing is lost where nobody was beaten either: without both sides there is no such sentence.
    both = any(any(label.startswith("pop") for label in result["summary"])
               and any(not label.startswith("pop") for label in result["summary"]) for result in results.values())
    return "\n".join(lines) if lines else "Nowhere in these cases." if both else NOT_MEASURED


def runs_markdown(results: dict) -> str:
    """Machine and versions, once per run: results of several runs may stand side by side."""
    runs = {}
    for result in results.values():
        runs.setdefault(json.dumps(result["run"], sort_keys=True), []).append(result["case"])
    parts = []
    for told, names in runs.items():
        run = json.loads(told)
        what = run["machine"]
        versions = ", ".join(f"{name} {version or 'unknown'}" for name, version in what["versions"].items())
        hardware = (f"- {what['processor']}, {what['cores']} cores{' of a virtual machine' if what['virtual'] else ''}, "
                    f"{what['memory_gib']} GiB, {what['system']}, Linux {what['kernel']}")
        parts.append("\n".join([
            f"- `{run['command']}`, {run['at']}: {', '.join(names)}",
            hardware,
            f"- {versions}",
            f"- before the run {run['quiet']['idle_share']:.0%} idle, {run['quiet']['steal_share']:.1%} stolen by the host",
            *(f"- **{warning}**" for warning in run["warnings"]),
            *(["- an experiment: seconds, rounds, configurations or a binary of its own, see the command and the versions"]
              if run["experiment"] else []),
        ]))
    return "\n\n".join(parts) if parts else NOT_MEASURED


def chart_of(results: dict, group: str) -> str | None:
    groups = []
    for result in results.values():
        if result["group"] != group or not result["summary"]:
            continue
        metric, _, unit = drawn_metric(result)
        rows = []
        for label, figures in result["summary"].items():
            if metric in figures:
                spread = {key: figures[metric][key] / unit for key in ("median", "min", "max")}
                rows.append((label, title_of(result, label), spread | {"count": figures[metric]["count"]}))
        if rows:
            groups.append((result["title"], rows))
    return charts.bars(*CHART_TITLES[group], groups) if groups else None


def targets_chart(results: dict) -> str | None:
    rows = [(f"{result['case']}: {verdict['label']} / {verdict['other']}", verdict["ratio"], verdict["limit"])
            for result in results.values() for verdict in result["targets"] if verdict["ratio"]]
    return charts.target_chart("Targets", "each ratio, with quartiles of rounds, as a share of what it may be at most; the line is "
                               "the target", rows) if rows else None


def write(results_directory: Path, docs: Path, root: Path) -> Path:
    """BENCHMARKS.md and the charts beside it; the path of the page."""
    results = results_in(results_directory)
    drawings = docs / "bench"
    drawings.mkdir(parents=True, exist_ok=True)
    for name in COLUMNS:
        drawing = chart_of(results, name)
        if drawing:
            (drawings / f"{name}.svg").write_text(drawing)
    drawing = targets_chart(results)
    if drawing:
        (drawings / "targets.svg").write_text(drawing)
    values = {name.replace("-", "_"): group_markdown(results, name, "bench") for name in COLUMNS}
    values |= {"runs": runs_markdown(results), "targets": targets_markdown(results),
               "targets_chart": "![Targets](bench/targets.svg)" if drawing else "", "losses": losses_markdown(results),
               "loss_percent": f"{LOSS_SHARE_MIN * 100:g}"}
    page = docs / "BENCHMARKS.md"
    page.write_text(template.render(TEMPLATE.read_text(), values, TEMPLATE.name))
    return page.relative_to(root) if page.is_relative_to(root) else page


def ratios_in(directory: Path) -> dict:
    """Paired ratios of the first contestant to every other, and of every target, by case and labels."""
    found = {}
    for name, result in results_in(directory).items():
        judged = {(verdict["label"], verdict["other"]): verdict["ratio"] for verdict in result["targets"] if verdict["ratio"]}
        found |= {f"{name}: {label} / {other}": ratio for (label, other), ratio in (shares_of(result) | judged).items()}
    return found


def outcome_of(measured: list, is_strict: bool) -> dict:
    """What a run came to: what was not measured, targets, and the exit code."""
    verdicts = [(result, verdict) for result in measured for verdict in result["targets"]]
    outcome = {
        "cases": len(measured),
        "skipped": {result["case"]: result["skipped"] for result in measured if result["skipped"]},
        "absent": {f"{result['case']}: {label}": reason for result in measured for label, reason in result["absent"].items()},
        "again": sum(len(result.get("again", [])) for result in measured),
        "disturbed": [result["case"] for result in measured if disturbance_of(result)],
        "targets_met": sum(verdict["met"] is True for _, verdict in verdicts),
        "targets_missed": [f"{verdict['case']}: {verdict_text(result, verdict)}" for result, verdict in verdicts
                           if verdict["met"] is False],
        "targets_without_figure": sum(verdict["met"] is None for _, verdict in verdicts),
    }
    failed = outcome["skipped"] or outcome["absent"] or not measured
    return outcome | {"exit_code": int(bool(failed or (is_strict and outcome["targets_missed"])))}


def outcome_text(outcome: dict) -> str:
    """The last words of a run."""
    lines = [f"{outcome['cases']} cases, {len(outcome['skipped'])} skipped, {len(outcome['absent'])} contestants absent, "
             f"{outcome['again']} turns taken once more; targets: {outcome['targets_met']} met, "
             f"{len(outcome['targets_missed'])} missed, {outcome['targets_without_figure']} without a figure"]
    lines += [f"SKIPPED {case}: {one_line(reason)}" for case, reason in outcome["skipped"].items()]
    lines += [f"ABSENT  {name}: {one_line(reason)}" for name, reason in outcome["absent"].items()]
    lines += [f"MISSED  {words}" for words in outcome["targets_missed"]]
    lines += [f"DISTURBED {', '.join(outcome['disturbed'])}: see their tables"] if outcome["disturbed"] else []
    return "\n".join(lines)


def comparison(one: Path, two: Path) -> tuple:
    """How far the ratios of two runs are apart, in words, the furthest first; and whether all that both have agree. Runs
    without a ratio in common agree in nothing."""
    first, second = ratios_in(one), ratios_in(two)
    both = {name: apart_of(first[name], second[name]) for name in first if name in second}
    width = max(map(len, both), default=0)
    lines = [f"{'ratio':{width}} {'first':>7} {'second':>7} {'apart':>8} {'rounds':>8}"]
    for name, (difference, within) in sorted(both.items(), key=lambda entry: -abs(entry[1][0])):
        mark = APART + (APART_LIKE_ROUNDS if within >= abs(difference) else "") if abs(difference) > AGREEMENT_SHARE else ""
        medians = (f"{ratios[name]['median']:7.3f}" for ratios in (first, second))
        lines.append(f"{name:{width}} {' '.join(medians)} {difference:+8.1%} {within:8.1%}{mark}")
    lines += [f"only in the {word}: {name}" for word, these, others in (("first", first, second), ("second", second, first))
              for name in these if name not in others]
    apart = [pair for pair in both.values() if abs(pair[0]) > AGREEMENT_SHARE]
    scattered = sum(within >= abs(difference) for difference, within in apart)
    lines.append(f"{len(both)} ratios; more than {AGREEMENT_SHARE * 100:.0f} % apart are {len(apart)}, of which {scattered} by no more "
                 "than rounds of one run\nrounds: how wide the middle half of a run's rounds is, in the run where it is wider")
    return "\n".join(lines), bool(both) and not apart


def apart_of(one: dict, two: dict) -> tuple:
    """By which share the second is more than the first, and how wide the middle half of the rounds is in the run where it is
    wider, as a share of its median."""
    return two["median"] / one["median"] - 1, max((ratio["q3"] - ratio["q1"]) / ratio["median"] for ratio in (one, two))
