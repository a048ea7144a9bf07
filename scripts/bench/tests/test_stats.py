"""Medians, spreads, ratios, turns and targets."""

import unittest

from bench import cases, runners, stats, targets


def sample(label: str, **figures) -> dict:
    return {"label": label, "figures": figures}


class Spreads(unittest.TestCase):
    def test_a_spread_has_median_and_extremes(self):
        self.assertEqual(stats.spread_of([3, 1, 10]), stats.Spread(3, 1, 10, 3))
        self.assertEqual(stats.spread_of([1, 2]), stats.Spread(1.5, 1, 2, 2))

    def test_rounds_without_a_figure_do_not_count_as_zero(self):
        self.assertEqual(stats.spread_of([None, 4.0]), stats.Spread(4.0, 4.0, 4.0, 1))
        self.assertIsNone(stats.spread_of([None]))
        self.assertIsNone(stats.spread_of([]))

    def test_a_summary_takes_labels_and_metrics_apart(self):
        summary = stats.summary_of([sample("a", x=1.0, y=5), sample("b", x=2.0), sample("a", x=3.0)])
        self.assertEqual(list(summary), ["a", "b"])
        self.assertEqual(summary["a"]["x"], {"median": 2.0, "min": 1.0, "max": 3.0, "count": 2})
        self.assertEqual(summary["a"]["y"]["count"], 1)
        self.assertNotIn("y", summary["b"])

    def test_a_ratio_is_of_medians_and_absent_without_both(self):
        summary = stats.summary_of([sample("a", x=1.0), sample("a", x=100.0), sample("a", x=2.0), sample("b", x=4.0)])
        self.assertEqual(stats.ratio_of(summary, "a", "b", "x"), 0.5)
        self.assertIsNone(stats.ratio_of(summary, "a", "c", "x"))
        self.assertIsNone(stats.ratio_of(summary, "a", "b", "y"))

    def test_a_ratio_to_zero_is_none(self):
        summary = stats.summary_of([sample("a", x=1.0), sample("b", x=0)])
        self.assertIsNone(stats.ratio_of(summary, "a", "b", "x"))


class Turns(unittest.TestCase):
    def test_everyone_has_a_turn_in_every_round_and_nobody_is_always_first(self):
        turns = stats.interleaved(["a", "b", "c"], 2)
        self.assertEqual(turns, [(0, "a"), (0, "b"), (0, "c"), (1, "c"), (1, "b"), (1, "a")])


class Targets(unittest.TestCase):
    TABLE = (targets.Target(1, "case", "x", "pop", "nginx", 0.5), targets.Target(1, "other", "x", "pop", "nginx", 0.1))

    def judged(self, pop: float | None, nginx: float = 10.0) -> list:
        samples = [sample("nginx", x=nginx)] + ([sample("pop", x=pop)] if pop is not None else [])
        return targets.judged("case", stats.summary_of(samples), self.TABLE)

    def test_met_at_the_limit_and_below_missed_above(self):
        for pop, met in ((4.0, True), (5.0, True), (5.01, False)):
            [verdict] = self.judged(pop)
            self.assertIs(verdict["met"], met)
            self.assertAlmostEqual(verdict["value"], pop / 10)

    def test_what_was_not_measured_is_neither_met_nor_missed(self):
        [verdict] = self.judged(None)
        self.assertIsNone(verdict["met"])
        self.assertIsNone(verdict["value"])

    def test_every_target_belongs_to_a_case_that_measures_it(self):
        known = {case.name: case for case in cases.CASES}
        for target in targets.TARGETS:
            case = known[target.case]
            names = {contestant.name for contestant in case.contestants}
            for label in (target.label, target.other):
                name, _, phase = label.partition(" ")
                self.assertIn(name, names, target)
                self.assertIn(phase, ("", *runners.PHASES), target)


if __name__ == "__main__":
    unittest.main()
