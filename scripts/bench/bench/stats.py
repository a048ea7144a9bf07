"""Medians, spreads and paired ratios of samples. Pure: numbers in, numbers out."""

import statistics
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Spread:
    """A median with quartiles, the least and the greatest of the rounds: min <= q1 <= median <= q3 <= max."""

    median: float
    q1: float
    q3: float
    min: float
    max: float
    count: int


def spread_of(values: list) -> Spread | None:
    """None for no values: a case without samples has no figure, not zero."""
    values = [value for value in values if value is not None]
    if not values:
        return None
    # With one round that is all there is of each.
    q1, middle, q3 = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return Spread(middle, q1, q3, min(values), max(values), len(values))


def summary_of(samples: list) -> dict:
    """Per label and metric (every entry of a sample's `figures`) the spread over rounds, as plain tables."""
    labels = list(dict.fromkeys(sample["label"] for sample in samples))
    summary = {}
    for label in labels:
        of_label = [sample["figures"] for sample in samples if sample["label"] == label]
        names = list(dict.fromkeys(name for figures in of_label for name in figures))
        spreads = {name: spread_of([figures.get(name) for figures in of_label]) for name in names}
        summary[label] = {name: asdict(spread) for name, spread in spreads.items() if spread}
    return summary


def median_of(summary: dict, label: str, metric: str) -> float | None:
    """None when it was not measured."""
    return summary.get(label, {}).get(metric, {}).get("median")


def ratio_of(samples: list, label: str, other: str, metric: str) -> Spread | None:
    """The ratio of two turns of one round, over the rounds that have both; None without any.

    Turns of one round are seconds apart, those of one contestant minutes: a machine that changes speed meanwhile is in both
    parts of each pair, and would be in one of two medians.
    """
    figures = {(sample["round"], sample["label"]): sample["figures"].get(metric) for sample in samples}
    pairs = [(figure, figures.get((index, other))) for (index, name), figure in figures.items() if name == label]
    return spread_of([one / two for one, two in pairs if one is not None and two])


def interleaved(labels: list, rounds: int) -> list:
    """(round, label) in the order of measuring: all take their turn in every round, and every other round goes backwards,
    so that none is always first."""
    turns = []
    for index in range(rounds):
        turns.extend((index, label) for label in (labels if index % 2 == 0 else labels[::-1]))
    return turns
