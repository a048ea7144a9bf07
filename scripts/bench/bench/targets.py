"""The acceptance list of the bench as data: which figure may be at most which share of which other."""

from dataclasses import asdict, dataclass

from . import stats


@dataclass(frozen=True)
class Target:
    """`metric` of `label` over that of `other`, paired by rounds of one run of `case`, is in the median at most `limit`."""

    point: int
    case: str
    metric: str
    label: str
    other: str
    limit: float


TARGETS = (
    Target(1, "small-64", "cpu_micros", "pop", "nginx-stream", 0.55),
    Target(1, "small-64", "cpu_micros", "pop", "nginx-https", 0.40),
    Target(1, "small-256", "cpu_micros", "pop", "nginx-stream", 0.48),
    Target(1, "small-256", "cpu_micros", "pop", "nginx-https", 0.32),
    Target(2, "mmtp-64x1", "cpu_micros", "pop-mmtp", "nginx-https", 0.38),
    Target(2, "mmtp-64x1", "cpu_micros", "pop-mmtp", "nginx-https-load", 0.38),
    Target(2, "mmtp-64x16", "cpu_micros", "pop-mmtp", "nginx-h2", 0.12),
    Target(3, "bulk", "cpu_micros", "pop-plain", "nginx-stream", 0.70),
    Target(3, "bulk", "cpu_micros", "pop", "nginx-stream", 0.95),
    Target(4, "new-full", "cpu_micros", "pop", "nginx-https", 0.33),
    Target(4, "new-resumed", "cpu_micros", "pop", "nginx-https", 0.33),
    Target(4, "new-early", "cpu_micros", "pop", "nginx-https", 0.38),
    Target(5, "half-load", "p99_micros", "pop", "nginx-https", 1.0),
    Target(5, "half-load", "p99_micros", "pop-mmtp", "nginx-https", 1.0),
    Target(5, "mixed", "p99_micros", "pop beside bulk", "pop quiet", 2.0),
    Target(5, "mixed", "p99_micros", "pop-mmtp beside bulk", "pop-mmtp quiet", 2.0),
    Target(5, "mixed-paced", "p99_micros", "pop beside bulk", "pop quiet", 2.0),
    Target(5, "mixed-paced", "p99_micros", "pop-mmtp beside bulk", "pop-mmtp quiet", 2.0),
    Target(6, "link-returning", "first_answer_p50_micros", "pop-mmtp", "nginx-pop", 0.50),
    Target(6, "link-returning", "first_answer_p50_micros", "pop-mmtp", "direct", 0.40),
)


def judged(case: str, samples: list, targets: tuple = TARGETS) -> list:
    """Every target of a case with its ratio: `met` is None, and so is `ratio`, where nothing was measured."""
    verdicts = []
    for target in targets:
        if target.case != case:
            continue
        ratio = stats.ratio_of(samples, target.label, target.other, target.metric)
        verdicts.append(asdict(target) | {"ratio": ratio and asdict(ratio), "met": ratio and ratio.median <= target.limit})
    return verdicts
