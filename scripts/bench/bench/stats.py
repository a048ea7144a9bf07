"""Medians, spreads and ratios of samples. Pure: numbers in, numbers out."""

import statistics
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Spread:
    """A median with the least and the greatest of the rounds: min <= median <= max."""

    median: float
    min: float
    max: float
    count: int


def spread_of(values: list) -> Spread | None:
    """None for no values: a case without samples has no figure, not zero."""
    values = [value for value in values if value is not None]
    if not values:
        return None
    return Spread(statistics.median(values), min(values), max(values), len(values))


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


def ratio_of(summary: dict, label: str, other: str, metric: str) -> float | None:
    """Ratio of medians; None when either is missing or the second is zero."""
    one, two = median_of(summary, label, metric), median_of(summary, other, metric)
    return one / two if one is not None and two else None


def interleaved(labels: list, rounds: int) -> list:
    """(round, label) in the order of measuring: all take their turn in every round, and every other round goes backwards,
    so that none is always first."""
    turns = []
    for index in range(rounds):
        turns.extend((index, label) for label in (labels if index % 2 == 0 else labels[::-1]))
    return turns
