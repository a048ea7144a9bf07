"""The command: chooses cases, measures them one after another, writes results and the report.

Exit codes: 0 all that was asked for was measured; 1 a case was skipped, a contestant absent, with --strict a target missed, or
with --compare a ratio more than 10 % apart; 2 a wrong command line; 128 + n ended by signal n, with all it had started.
"""

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

from . import cases, machine, report, runners, stats, targets
from .process import ENDINGS
from .site import Settings

ROOT = Path(__file__).resolve().parents[3]
PAGE_RESULTS = ROOT / "bench-results"
LINKS = "net.sh (which wants root)"
TOOLS = ("nginx", "haproxy", "wrk", "h2load")
DESCRIPTORS_MIN = 18000


def arguments_of(words: list) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench/run.sh", description="Trunkline beside nginx and HAProxy.")
    add = parser.add_argument
    add("--quick", action="store_true", help="five minutes: short rounds and few, to see that everything works")
    add("--only", default="", metavar="CASE,…", help="these cases or groups of them")
    add("--skip", default="", metavar="CASE,…", help="all but these: what is left out so is not counted as failed")
    add("--strict", action="store_true", help="exit 1 for a missed target as well")
    add("--list", action="store_true", help="list the cases and what each takes, and end")
    add("--rounds", type=int, help="turns of every contestant, instead of what the case says")
    add("--seconds", type=float, help="length of what is measured of a turn, instead of what the case says")
    add("--pop-config", default="", metavar="TOML", help="laid over the configuration of POPs, for experiments")
    add("--gateway-config", default="", metavar="TOML", help="the same for gateways")
    add("--keep", type=Path, metavar="DIR", help="keep configurations, logs and outputs there")
    add("--results", type=Path, metavar="DIR", help="where results go; by default bench-results, and within it "
        "quick/ with --quick and try/ with --rounds, --seconds, a configuration, or TRUNKLINE set")
    add("--report", action="store_true", help="measure nothing: write the report from the results that are there")
    add("--compare", nargs=2, type=Path, metavar="DIR",
        help="measure nothing: compare the ratios of two runs, the furthest apart first; exit 1 beyond 10 %%")
    return parser.parse_args(words)


def is_built_here() -> bool:
    """Whether the binary is this checkout's; of another, nobody here knows the commit."""
    return not os.environ.get("TRUNKLINE")


def is_experiment(arguments: argparse.Namespace) -> bool:
    """Whether the figures are not those of the cases as they stand and of this checkout."""
    paced = arguments.rounds or arguments.seconds or arguments.pop_config or arguments.gateway_config
    return bool(paced) or not is_built_here()


def results_of(arguments: argparse.Namespace) -> Path:
    if arguments.results:
        return arguments.results
    return PAGE_RESULTS / ("quick" if arguments.quick else "try" if is_experiment(arguments) else "")


def instruments_of(settings: Settings) -> set:
    """What there is to measure with."""
    found = {tool for tool in TOOLS if machine.first_line(["which", tool])}
    done = subprocess.run([settings.trunkline, "load", "--help"], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        found.add("load")
        found |= {f"load --{flag}" for flag in ("handshake", "rate", "idle", "fast-open") if f"--{flag}" in done.stdout}
    if (ROOT / "scripts/bench/net.sh").exists() and os.geteuid() == 0:
        found.add(LINKS)
    return found


def missing_of(case: cases.Case, instruments: set) -> list:
    """Needs that nothing meets."""
    return [need for need in case.needs if need not in instruments]


def pace_of(case: cases.Case, arguments: argparse.Namespace) -> tuple:
    """Seconds and rounds."""
    seconds, rounds = (case.seconds_quick, case.rounds_quick) if arguments.quick else (case.seconds, case.rounds)
    return arguments.seconds or seconds, arguments.rounds or rounds


def measure(case: cases.Case, arguments: argparse.Namespace, settings: Settings, instruments: set) -> dict:
    """The result of a case; one that cannot be measured says why."""
    seconds, rounds = pace_of(case, arguments)
    run = runners.Run(settings, seconds, rounds, arguments.quick)
    missing, skipped = missing_of(case, instruments), None
    began = time.monotonic()
    if missing:
        skipped = f"there is no {' and no '.join(missing)} here"
    else:
        print(f"{case.name}: {case.title}; {report.pace_text(rounds, seconds)}")
        try:
            case.runner(case, run)
        except runners.TROUBLES as trouble:
            skipped = runners.words_of(trouble)
    if skipped:
        print(f"SKIPPED {case.name}: {skipped}")
    return {"case": case.name, "group": case.group, "title": case.title, "skipped": skipped,
            "absent": run.absent, "again": run.again, "seconds": seconds, "rounds": rounds,
            "took_s": round(time.monotonic() - began, 1),
            "titles": {contestant.name: contestant.title for contestant in case.contestants},
            "summary": stats.summary_of(run.samples), "targets": targets.judged(case.name, run.samples), "samples": run.samples}


def measure_all(wanted: list, arguments: argparse.Namespace, settings: Settings, results: Path) -> list:
    """Results of all cases; each is written down as soon as it is there."""
    quiet = machine.quietness(2.0)
    about = {
        "at": time.strftime("%Y-%m-%d %H:%M:%S %z"), "command": report.command_of(sys.argv[1:]),
        "quick": arguments.quick, "experiment": is_experiment(arguments),
        "pop_config": arguments.pop_config, "gateway_config": arguments.gateway_config,
        "machine": machine.description(settings.trunkline, ROOT, is_built_here()), "quiet": quiet,
        "warnings": machine.warnings_of(quiet),
    }
    if settings.contestant_core == settings.other_core:
        about["warnings"].append("there is one core: the contestant shares it with its clients")
    elif settings.other_core in machine.siblings_of(settings.contestant_core):
        about["warnings"].append("both cores are threads of one: what clients do slows the contestant, and a lighter one "
                                 "has a busier neighbour")
    instruments, measured = instruments_of(settings), []
    # Said before half an hour of other cases, not after it.
    for case in wanted:
        for need in missing_of(case, instruments):
            print(f"WARNING: {case.name} will be skipped, there is no {need} here; --skip {case.group} leaves it out")
    for warning in about["warnings"]:
        print(f"WARNING: {warning}")
    for case in wanted:
        result = {"run": about} | measure(case, arguments, settings, instruments)
        results.mkdir(parents=True, exist_ok=True)
        (results / f"{case.name}.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
        print(report.case_text(result))
        measured.append(result)
    return measured


def settings_of(arguments: argparse.Namespace) -> Settings:
    trunkline = os.environ.get("TRUNKLINE") or str(ROOT / "target/release/trunkline")
    if not os.access(trunkline, os.X_OK):
        raise SystemExit(f"no {trunkline}: cargo build --release, or set TRUNKLINE")
    settings = Settings(trunkline, arguments.pop_config, arguments.gateway_config, arguments.keep)
    settings.keep_to_other_core()
    return settings


def list_cases(wanted: list, arguments: argparse.Namespace) -> None:
    whole = 0.0
    for case in wanted:
        estimate = case.estimate_s(*pace_of(case, arguments))
        whole += estimate
        needs = f"   needs {', '.join(case.needs)}" if case.needs else ""
        print(f"{case.name:15} {estimate:5.0f} s   {case.title}{needs}")
    print(f"{'together':15} {whole:5.0f} s")


def raise_descriptor_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and hard < DESCRIPTORS_MIN:
        print(f"WARNING: {hard} open descriptors are allowed, cases with many connections want {DESCRIPTORS_MIN}: "
              "raise the hard limit (ulimit -Hn)")


def end_by_signals() -> None:
    """Asked to end, or left by its terminal, everything that was started ends as well; asked again, that goes on."""
    numbers = [number for number in ENDINGS if signal.getsignal(number) != signal.SIG_IGN]

    def end(number: int, _frame) -> None:
        for other in numbers:
            signal.signal(other, signal.SIG_IGN)
        sys.exit(128 + number)

    for number in numbers:
        signal.signal(number, end)


def words_in(text: str) -> list:
    return [name for name in text.split(",") if name]


def main(words: list) -> int:
    arguments = arguments_of(words)
    end_by_signals()
    try:
        wanted = cases.chosen(words_in(arguments.only), words_in(arguments.skip))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    results = results_of(arguments)
    if arguments.compare:
        text, agree = report.comparison(*arguments.compare)
        print(text)
        return 0 if agree else 1
    if arguments.list:
        list_cases(wanted, arguments)
        return 0
    if arguments.report:
        measured = list(report.results_in(results).values())
    else:
        raise_descriptor_limit()
        os.environ["PATH"] += ":/usr/sbin:/sbin"
        measured = measure_all(wanted, arguments, settings_of(arguments), results)
    # Only what was measured as the cases say becomes the repository's page.
    page = report.write(results, ROOT / "docs" if results.resolve() == PAGE_RESULTS else results, ROOT)
    outcome = report.outcome_of(measured, arguments.strict)
    (results / "summary.json").write_text(json.dumps(outcome, indent=1, ensure_ascii=False) + "\n")
    print(report.outcome_text(outcome))
    print(f"results: {results}   report: {page}")
    return outcome["exit_code"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
