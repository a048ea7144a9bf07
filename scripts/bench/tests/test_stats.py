"""Medians, spreads, paired ratios, turns and targets."""

import unittest

from bench import cases, runners, stats, targets


def sample(label: str, index: int = 0, **figures) -> dict:
    return {"label": label, "round": index, "figures": figures}


def rounds_of(**figures) -> list:
    """Samples of x: a value for each round, by label; None for a round that came to nothing."""
    return [sample(label, index, x=value) for label, values in figures.items() for index, value in enumerate(values)
            if value is not None]


class Spreads(unittest.TestCase):
    def test_a_spread_has_median_quartiles_and_extremes(self):
        self.assertEqual(stats.spread_of([3, 1, 10]), stats.Spread(3, 2, 6.5, 1, 10, 3))
        self.assertEqual(stats.spread_of([1, 2]), stats.Spread(1.5, 1.25, 1.75, 1, 2, 2))
        self.assertEqual(stats.spread_of([9, 1, 2, 3, 4]), stats.Spread(3, 2, 4, 1, 9, 5))

    def test_rounds_without_a_figure_do_not_count_as_zero(self):
        self.assertEqual(stats.spread_of([None, 4.0]), stats.Spread(4.0, 4.0, 4.0, 4.0, 4.0, 1))
        self.assertIsNone(stats.spread_of([None]))
        self.assertIsNone(stats.spread_of([]))

    def test_a_summary_takes_labels_and_metrics_apart(self):
        summary = stats.summary_of([sample("a", x=1.0, y=5), sample("b", x=2.0), sample("a", x=3.0)])
        self.assertEqual(list(summary), ["a", "b"])
        self.assertEqual(summary["a"]["x"], {"median": 2.0, "q1": 1.5, "q3": 2.5, "min": 1.0, "max": 3.0, "count": 2})
        self.assertEqual(summary["a"]["y"]["count"], 1)
        self.assertNotIn("y", summary["b"])


class Ratios(unittest.TestCase):
    def test_drift_that_fools_a_ratio_of_medians_does_not_fool_paired_ones(self):
        # The machine gets slower by 1.7 while b has been dropped from the first rounds: a is half of b in each that both have.
        speeds = [1.0, 1.0, 1.0, 1.7, 1.7]
        samples = rounds_of(a=[10 * speed for speed in speeds], b=[None, None, *(20 * speed for speed in speeds[2:])])
        summary = stats.summary_of(samples)
        self.assertAlmostEqual(summary["a"]["x"]["median"] / summary["b"]["x"]["median"], 0.5 / 1.7)
        self.assertEqual(stats.ratio_of(samples, "a", "b", "x"), stats.Spread(0.5, 0.5, 0.5, 0.5, 0.5, 3))

    def test_a_change_of_speed_between_two_turns_spoils_one_pair_and_not_the_ratio(self):
        # Every other round goes backwards: b's third turn is before the change, a's after it, and so of b are three slow
        # turns of five and of a two.
        samples = rounds_of(a=[10, 10, 10, 17, 17], b=[20, 20, 34, 34, 34])
        summary = stats.summary_of(samples)
        self.assertLess(summary["a"]["x"]["median"] / summary["b"]["x"]["median"], 0.3)
        ratio = stats.ratio_of(samples, "a", "b", "x")
        self.assertEqual((ratio.median, ratio.q1, ratio.q3, ratio.count), (0.5, 0.5, 0.5, 5))
        self.assertLess(ratio.min, 0.3)

    def test_steady_drift_leaves_quartiles_narrow_where_figures_are_wide(self):
        speeds = [1 + index * 0.1 for index in range(9)]
        samples = rounds_of(a=[10 * speed * (1.02 if index % 2 else 0.98) for index, speed in enumerate(speeds)],
                            b=[20 * speed for speed in speeds])
        ratio, figure = stats.ratio_of(samples, "a", "b", "x"), stats.summary_of(samples)["a"]["x"]
        self.assertLess((ratio.q3 - ratio.q1) / ratio.median, 0.05)
        self.assertGreater((figure["q3"] - figure["q1"]) / figure["median"], 0.25)

    def test_rounds_are_paired_by_their_number_and_not_by_their_order(self):
        samples = rounds_of(a=[1.0, None, 4.0], b=[None, 9.0, 8.0])[::-1]
        self.assertEqual(stats.ratio_of(samples, "a", "b", "x"), stats.spread_of([0.5]))

    def test_without_a_round_of_both_there_is_no_ratio(self):
        samples = rounds_of(a=[1.0, None], b=[None, 2.0])
        for label, other, metric in (("a", "b", "x"), ("a", "c", "x"), ("c", "a", "x"), ("a", "a", "y")):
            self.assertIsNone(stats.ratio_of(samples, label, other, metric))

    def test_a_ratio_to_zero_is_none(self):
        self.assertIsNone(stats.ratio_of(rounds_of(a=[1.0], b=[0]), "a", "b", "x"))


class Turns(unittest.TestCase):
    def test_everyone_has_a_turn_in_every_round_and_nobody_is_always_first(self):
        turns = stats.interleaved(["a", "b", "c"], 2)
        self.assertEqual(turns, [(0, "a"), (0, "b"), (0, "c"), (1, "c"), (1, "b"), (1, "a")])


class Targets(unittest.TestCase):
    TABLE = (targets.Target(1, "case", "x", "pop", "nginx", 0.5), targets.Target(1, "other", "x", "pop", "nginx", 0.1))

    def judged(self, pop: float | None, nginx: float = 10.0) -> list:
        return targets.judged("case", rounds_of(nginx=[nginx], pop=[pop]), self.TABLE)

    def test_met_at_the_limit_and_below_missed_above(self):
        for pop, met in ((4.0, True), (5.0, True), (5.01, False)):
            [verdict] = self.judged(pop)
            self.assertIs(verdict["met"], met)
            self.assertAlmostEqual(verdict["ratio"]["median"], pop / 10)

    def test_the_median_of_pairs_is_judged(self):
        samples = rounds_of(pop=[4.0, 9.0, 4.5], nginx=[10.0, 10.0, 10.0])
        [verdict] = targets.judged("case", samples, self.TABLE)
        self.assertEqual((verdict["met"], verdict["ratio"]["median"], verdict["ratio"]["max"]), (True, 0.45, 0.9))

    def test_what_was_not_measured_is_neither_met_nor_missed(self):
        [verdict] = self.judged(None)
        self.assertIsNone(verdict["met"])
        self.assertIsNone(verdict["ratio"])

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
