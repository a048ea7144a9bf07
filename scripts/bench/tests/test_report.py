"""Tables, losses, the page and the charts."""

import http.client
import io
import json
import os
import tempfile
import unittest
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from unittest import mock
from xml.etree import ElementTree

from bench import __main__ as command
from bench import cases, charts, report, runners, stats, targets


def result_of(case_name: str, figures: dict, skipped: str | None = None) -> dict:
    """As the command writes it; `figures` by label and metric, one value for each round."""
    case = next(case for case in cases.CASES if case.name == case_name)
    samples = [{"label": label, "round": index, "errors": {}, "figures": {name: values[index] for name, values in of.items()}}
               for label, of in figures.items() for index in range(len(next(iter(of.values()))))]
    run = {"at": "now", "command": "run.sh", "experiment": False, "warnings": [], "pop_config": "", "gateway_config": "",
           "quiet": {"idle_share": 1.0, "steal_share": 0.0},
           "machine": {"processor": "P", "cores": 2, "virtual": True, "memory_gib": 1, "system": "S", "kernel": "6",
                       "versions": {"nginx": "1"}}}
    return {"run": run, "case": case.name, "group": case.group, "title": case.title, "skipped": skipped, "absent": {},
            "seconds": 1.0, "rounds": 2, "titles": {contestant.name: contestant.title for contestant in case.contestants},
            "summary": stats.summary_of(samples), "targets": targets.judged(case.name, samples), "samples": samples}


SMALL = {"pop": {"cpu_micros": [10.0, 12.0], "requests_per_s": [100.0, 100.0]},
         "nginx-stream": {"cpu_micros": [20.0, 24.0], "requests_per_s": [150.0, 150.0]}}


class Words(unittest.TestCase):
    def test_a_table_gives_medians_spreads_and_shares(self):
        heads, rows = report.rows_of(result_of("small-64", SMALL))
        self.assertEqual(heads, ["", "CPU, µs", "per second", "first / this"])
        self.assertEqual(rows[0], ["Trunkline, tunnel", "11.0 (10.0–12.0)", "100 (100–100)", ""])
        self.assertEqual(rows[1][-1], "0.500 (0.500–0.500)")

    def test_a_share_is_of_the_same_phase(self):
        figures = {"pop quiet": {"p99_micros": [1.0]}, "pop beside bulk": {"p99_micros": [9.0]},
                   "nginx-https quiet": {"p99_micros": [2.0]}, "nginx-https beside bulk": {"p99_micros": [3.0]}}
        _, rows = report.rows_of(result_of("mixed", figures))
        self.assertEqual([row[-1] for row in rows], ["", "", "0.500", "3.00"])

    def test_no_two_columns_of_a_table_are_called_the_same(self):
        for columns in report.COLUMNS.values():
            heads = [heading for _, heading, _ in columns]
            self.assertEqual(len(set(heads)), len(heads), heads)

    def test_losses_are_found_by_the_direction_of_the_metric(self):
        losses = report.losses_of(result_of("small-64", SMALL))
        self.assertEqual(len(losses), 1)
        self.assertIn("per second: 100; nginx stream: 150 (1.50 times better)", losses[0])

    def test_losses_are_of_pairs(self):
        # Of the medians nginx is 1.5 times better; in most rounds it is behind.
        figures = {"pop": {"cpu_micros": [9.0, 15.0, 30.0]}, "nginx-stream": {"cpu_micros": [10.0, 10.0, 33.0]}}
        self.assertEqual(report.losses_of(result_of("small-64", figures)), [])

    def test_every_figure_of_a_table_is_judged_but_how_many_there_were(self):
        figures = {"pop-mmtp": {"p50_micros": [2.0], "connections": [1.0]}, "nginx-pop": {"p50_micros": [1.0], "connections": [9.0]}}
        [loss] = report.losses_of(result_of("link-body", figures))
        self.assertIn("whole answer p50, ms", loss)
        for group, columns in report.COLUMNS.items():
            judged = {name for name, _, _ in columns} - report.UNJUDGED
            self.assertEqual({name for name, _, _ in columns} - judged, {"connections"} if group == "link" else set())

    def test_nothing_is_lost_only_where_somebody_was_beaten(self):
        alone = {"small-64": result_of("small-64", {"pop": {"cpu_micros": [1.0]}})}
        self.assertEqual(report.losses_markdown(alone), report.NOT_MEASURED)
        both = {"small-64": result_of("small-64", {"pop": {"cpu_micros": [1.0]}, "nginx-https": {"cpu_micros": [2.0]}})}
        self.assertEqual(report.losses_markdown(both), "Nowhere in these cases.")

    def test_turns_taken_again_and_what_was_unfinished_are_told(self):
        result = result_of("link-body", {"pop": {"p50_micros": [1.0, 1.0], "unfinished": [1, 2]}})
        result["again"] = [{"label": "pop", "round": 1, "reason": "stumbled"}]
        text = report.case_markdown(result)
        self.assertIn("in no figure: Trunkline, tunnel 3.", text)
        self.assertIn("Taken once more: Trunkline, tunnel, round 2 (stumbled).", text)

    def test_the_exit_code_tells_what_was_not_measured_and_strictly_what_was_missed(self):
        good, skipped = result_of("small-64", SMALL), result_of("bulk", {}, "there is no wrk here")
        missed = result_of("small-64", SMALL | {"pop": {"cpu_micros": [99.0, 99.0]}})
        self.assertEqual(report.outcome_of([good], True)["exit_code"], 0)
        self.assertEqual(report.outcome_of([good, skipped], False)["exit_code"], 1)
        self.assertEqual(report.outcome_of([good | {"absent": {"haproxy-tcp": "no start"}}], False)["exit_code"], 1)
        self.assertEqual(report.outcome_of([missed], False)["exit_code"], 0)
        self.assertEqual(report.outcome_of([missed], True)["exit_code"], 1)
        text = report.outcome_text(report.outcome_of([missed, skipped], True))
        self.assertIn("SKIPPED bulk: there is no wrk here", text)
        self.assertIn("MISSED  small-64: Trunkline, tunnel / nginx stream: 4.54 (4.33–4.74), at most 0.55", text)

    def test_phases_are_compared_with_the_same_phase_of_others(self):
        figures = {"pop quiet": {"p99_micros": [1.0]}, "pop beside bulk": {"p99_micros": [9.0]},
                   "nginx-https quiet": {"p99_micros": [2.0]}, "nginx-https beside bulk": {"p99_micros": [3.0]}}
        [loss] = report.losses_of(result_of("mixed", figures))
        self.assertIn("Trunkline, tunnel, beside bulk", loss)
        self.assertIn("nginx https, beside bulk", loss)

    def test_a_disturbed_case_says_so(self):
        figures = {"pop": {"cpu_micros": [1.0], "foreign_share": [0.4]}, "nginx-https": {"cpu_micros": [1.0], "foreign_share": [0.0]}}
        self.assertEqual(report.disturbance_of(result_of("small-64", figures)),
                         ["DISTURBED: others used the contestant's core beside Trunkline, tunnel 40%."])

    def test_a_skipped_case_gives_its_reason(self):
        self.assertIn("Skipped: there is no load here.", report.case_markdown(result_of("small-64", {}, "there is no load here")))


class Page(unittest.TestCase):
    def setUp(self):
        self.directory = Path(self.enterContext(tempfile.TemporaryDirectory()))

    def keep(self, *results: dict) -> None:
        for result in results:
            (self.directory / f"{result['case']}.json").write_text(json.dumps(result))

    def test_the_page_is_written_from_every_kind_of_result(self):
        self.keep(result_of("small-64", SMALL), result_of("bulk", {}, "there is no wrk here"))
        page = report.write(self.directory, self.directory, Path("/nowhere"))
        text = page.read_text()
        self.assertNotIn("{{", text)
        self.assertIn("| 1 | Small requests, 64 connections | Trunkline, tunnel | nginx stream | CPU | 0.500 (0.500–0.500) | 0.55 | met |", text)
        self.assertIn("there is no wrk here", text)
        for name in ("small", "targets"):
            ElementTree.parse(self.directory / "bench" / f"{name}.svg")

    def test_the_page_is_written_without_any_result(self):
        page = report.write(self.directory, self.directory, Path("/nowhere"))
        self.assertIn(report.NOT_MEASURED, page.read_text())

    def compared_with(self, **pop) -> tuple:
        """SMALL beside a run in which POP had these figures."""
        self.keep(result_of("small-64", SMALL))
        first, self.directory = self.directory, Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.keep(result_of("small-64", SMALL | {"pop": pop}))
        return report.comparison(first, self.directory)

    def test_two_runs_agree_within_ten_percent(self):
        text, agree = self.compared_with(cpu_micros=[10.9, 13.0])
        self.assertIn("small-64: pop / nginx-stream", text)
        self.assertIn("+8.7%", text)
        self.assertTrue(agree)
        self.assertIn("1 ratios; more than 10 % apart are 0,", text)

    def test_two_runs_that_are_further_apart_do_not_agree(self):
        text, agree = self.compared_with(cpu_micros=[12.0, 14.4])
        self.assertIn("+20.0%     0.0%  MORE THAN 10 %\n", text)
        self.assertFalse(agree)

    def test_a_difference_is_told_beside_that_of_the_rounds_of_a_run(self):
        text, agree = self.compared_with(cpu_micros=[10.0, 24.0])
        self.assertIn("+50.0%    33.3%  MORE THAN 10 %\n", text)
        self.directory = Path(self.enterContext(tempfile.TemporaryDirectory()))
        text, agree = self.compared_with(cpu_micros=[6.0, 22.0])
        self.assertIn("MORE THAN 10 %, no more than rounds of one run", text)
        self.assertIn("more than 10 % apart are 1, of which 1 by no more than rounds of one run", text)
        self.assertFalse(agree)

    def test_the_furthest_apart_come_first_and_what_only_one_has_is_named(self):
        bulk = {"pop": {"cpu_micros": [1.0]}, "nginx-https": {"cpu_micros": [1.0]}}
        self.keep(result_of("small-64", SMALL), result_of("bulk", bulk))
        first, self.directory = self.directory, Path(self.enterContext(tempfile.TemporaryDirectory()))
        self.keep(result_of("small-64", SMALL), result_of("bulk", bulk | {"pop": {"cpu_micros": [0.8]}}),
                  result_of("small-16", SMALL))
        lines = report.comparison(first, self.directory)[0].splitlines()
        self.assertIn("-20.0%", lines[1])
        self.assertIn("+0.0%", lines[2])
        self.assertEqual(lines[3], "only in the second: small-16: pop / nginx-stream")

    def test_runs_without_a_ratio_in_common_do_not_agree(self):
        self.keep(result_of("small-64", SMALL))
        self.assertTrue(report.comparison(self.directory, self.directory)[1])
        self.assertFalse(report.comparison(self.directory, Path("/nowhere"))[1])

    def test_results_are_judged_by_the_targets_of_today(self):
        self.keep(result_of("small-64", SMALL) | {"targets": []})
        self.assertEqual(len(report.results_in(self.directory)["small-64"]["targets"]), 2)


SPREAD = {"median": 10.0, "min": 9.0, "max": 12.0, "count": 3}


class Charts(unittest.TestCase):
    def test_bars_are_well_formed_and_escape_words(self):
        drawing = charts.bars("a < b & c", "\"quoted\"", [("group <1>", [("pop", "Trunkline & co", SPREAD)])])
        root = ElementTree.fromstring(drawing)
        words = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
        self.assertIn("a < b & c", words)
        self.assertIn("Trunkline & co", words)
        self.assertIn("10.0 (9.00–12.0)", words)

    def test_nothing_is_drawn_outside(self):
        rows = [(f"nginx-{index}", "words", {"median": index, "min": index / 2, "max": index * 2.0, "count": 2})
                for index in range(1, 9)]
        root = ElementTree.fromstring(charts.bars("title", "", [("one", rows), ("two", rows)]))
        height = float(root.get("height"))
        for rect in root.iter("{http://www.w3.org/2000/svg}rect"):
            self.assertLessEqual(float(rect.get("x", 0)) + float(rect.get("width")), charts.WIDTH)
            self.assertLessEqual(float(rect.get("y", 0)) + float(rect.get("height")), height)

    def test_every_name_of_the_table_has_room(self):
        wide_px = 7.4  # of a letter at the size of labels, on average, in the widest of the fonts asked for
        for case in cases.CASES:
            for contestant in case.contestants:
                longest = f"{contestant.title}, with bulk elsewhere" if case.group == "mixed" else contestant.title
                self.assertLess(len(longest) * wide_px, charts.NAME_WIDTH - 10, longest)

    def test_no_groups_and_zeros_draw_an_empty_chart(self):
        ElementTree.fromstring(charts.bars("title", "", []))
        zero = {"median": 0.0, "min": 0.0, "max": 0.0, "count": 1}
        ElementTree.fromstring(charts.bars("title", "", [("one", [("pop", "w", zero)])]))

    def test_targets_are_coloured_by_their_verdict(self):
        rows = [("a", {"median": 0.4, "q1": 0.3, "q3": 0.9}, 0.5), ("b", {"median": 0.6, "q1": 0.6, "q3": 0.6}, 0.5)]
        drawing = charts.target_chart("t", "", rows)
        for line in ElementTree.fromstring(drawing).iter("{http://www.w3.org/2000/svg}line"):
            self.assertLess(float(line.get("x2")), charts.WIDTH)
        self.assertEqual((drawing.count('class="met"'), drawing.count('class="missed"')), (1, 1))

    def test_numbers_have_about_three_digits(self):
        told = [charts.number(value) for value in (0.123, 9.876, 12.34, 123.4, 12345.6)]
        self.assertEqual(told, ["0.12", "9.88", "12.3", "123", "12 346"])


class Runs(unittest.TestCase):
    def turns_of(self, bad_turns: dict) -> tuple:
        """Turns of a and b in two rounds; `bad_turns` are how many attempts of a label fail."""
        run = runners.Run(None, 1.0, 2, False, say=lambda _: None)
        taken = []
        for index, label in run.turns(["a", "b"]):
            taken.append((index, label))
            if bad_turns.get(label, 0):
                bad_turns[label] -= 1
                run.fail(label, index, runners.ProcessEnded("stumbled"))
        return taken, run

    def test_a_turn_that_fails_once_is_taken_again(self):
        taken, run = self.turns_of({"a": 1})
        self.assertEqual(taken, [(0, "a"), (0, "a"), (0, "b"), (1, "b"), (1, "a")])
        self.assertEqual(run.absent, {})
        self.assertEqual(run.again, [{"label": "a", "round": 0, "reason": "stumbled"}])

    def test_who_fails_twice_is_dropped_and_the_others_go_on(self):
        taken, run = self.turns_of({"a": 9})
        self.assertEqual(taken, [(0, "a"), (0, "a"), (0, "b"), (1, "b")])
        self.assertEqual(run.absent, {"a": "stumbled"})

    def test_a_turn_that_the_host_took_from_is_taken_again_once_and_then_kept(self):
        run = runners.Run(None, 1.0, 1, False, say=lambda _: None)
        for index, label in run.turns(["a"]):
            run.note(label, index, {"steal_share": 0.5}, {})
        self.assertEqual((len(run.again), len(run.samples)), (1, 1))
        result = result_of("small-64", {"pop": {"cpu_micros": [1.0], "steal_share": [0.5]}})
        self.assertEqual(report.disturbance_of(result),
                         ["DISTURBED: the host took a core's time beside Trunkline, tunnel 50%."])

    def test_a_taker_has_the_troubles_of_its_turns_and_no_other(self):
        run = runners.Run(None, 1.0, 3, False, say=lambda _: None)

        def turn(index: int, taker: str) -> tuple:
            if taker == "bad":
                raise runners.TurnVoid("void")
            return {"x": index, "steal_share": 0.0}, {}

        run.take({"a": "good", "b": "bad"}, turn)
        self.assertEqual([(sample["label"], sample["figures"]["x"]) for sample in run.samples], [("a", 0), ("a", 1), ("a", 2)])
        self.assertEqual((run.absent, len(run.again)), ({"b": "void"}, 1))

    def test_a_turn_with_too_many_errors_is_void(self):
        runners.check_errors({"requests": 9999, "errors": {"reset": 10}})
        with self.assertRaisesRegex(runners.TurnVoid, "20 errors beside 9999 good answers, more than 0.1%: 20 × reset"):
            runners.check_errors({"requests": 9999, "errors": {"reset": 20}})
        with self.assertRaises(runners.TurnVoid):
            runners.check_errors({"requests": 0, "errors": {"reset": 1}})
        runners.check_errors({"requests": 10, "errors": {"late": 5, "reset": 1}}, 0.1, ("late",))

    def test_what_a_case_stumbles_over_is_told_and_not_the_end_of_the_run(self):
        for trouble in (FileNotFoundError("no report"), TimeoutError("status"), runners.template.TemplateError("no place"),
                        http.client.BadStatusLine("x"), runners.tools.OutputError("x")):
            case = replace(cases.CASES[0], needs=(), runner=mock.Mock(side_effect=trouble))
            with redirect_stdout(io.StringIO()):
                result = command.measure(case, command.arguments_of([]), None, set())
            self.assertEqual(result["skipped"], runners.words_of(trouble))
        self.assertEqual(runners.words_of(FileNotFoundError("no report")), "FileNotFoundError: no report")


class Command(unittest.TestCase):
    def test_cases_are_chosen_by_name_and_by_group(self):
        self.assertEqual([case.name for case in cases.chosen(["bulk", "small-64"])], ["small-64", "bulk"])
        self.assertEqual(len(cases.chosen(["small"])), 4)
        self.assertEqual(cases.chosen([]), list(cases.CASES))
        self.assertNotIn("link", {case.group for case in cases.chosen([], ["link", "bulk"])})
        with self.assertRaisesRegex(ValueError, "no case smal; there are small-16"):
            cases.chosen(["smal"])

    def test_a_need_that_nothing_meets_is_named(self):
        [case] = cases.chosen(["idle"])
        self.assertEqual(command.missing_of(case, {"load --idle"}), [])
        self.assertEqual(command.missing_of(case, {"wrk"}), list(case.needs))

    def test_experiments_and_quick_runs_leave_the_page_alone(self):
        self.enterContext(mock.patch.dict(os.environ))
        os.environ.pop("TRUNKLINE", None)
        base = command.results_of(command.arguments_of([]))
        for words in (["--quick"], ["--rounds", "2"], ["--pop-config", "id = 'x'"]):
            self.assertNotEqual(command.results_of(command.arguments_of(words)), base)
        self.assertEqual(command.results_of(command.arguments_of(["--only", "bulk"])), base)
        with mock.patch.dict(os.environ, {"TRUNKLINE": "/elsewhere/trunkline"}):
            self.assertNotEqual(command.results_of(command.arguments_of([])), base)

    def test_a_full_run_takes_about_forty_minutes_and_a_quick_one_five(self):
        for words, minutes in (([], 42), (["--quick"], 5)):
            arguments = command.arguments_of(words)
            whole = sum(case.estimate_s(*command.pace_of(case, arguments)) for case in cases.CASES)
            self.assertLess(whole, minutes * 60)

    def test_rounds_are_odd_so_that_one_of_them_is_the_median(self):
        for case in cases.CASES:
            self.assertEqual((case.rounds % 2, case.rounds_quick % 2), (1, 1), case.name)


if __name__ == "__main__":
    unittest.main()
