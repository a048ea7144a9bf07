"""Configurations of peers."""

import tomllib
import unittest

from bench import template

POP = {"core": 0, "address": "127.0.0.1", "pop_port": 1, "gateway_address": "127.0.0.1", "gateway_port": 2, "admin_port": 3}


class Rendering(unittest.TestCase):
    def test_places_are_filled_and_defaults_hold(self):
        self.assertEqual(template.render("{{a}} {{b=2}} {{c=}}.", {"a": 1}), "1 2 .")
        self.assertEqual(template.render("{{b=2}}", {"b": 3}), "3")

    def test_a_missing_value_is_an_error_that_names_it(self):
        with self.assertRaisesRegex(template.TemplateError, "no value for port"):
            template.render("listen {{port}}", {})

    def test_a_value_without_a_place_is_an_error_that_names_it(self):
        with self.assertRaisesRegex(template.TemplateError, "no place for prot"):
            template.render("listen {{port=1}}", {"prot": 1})

    def test_braces_of_other_languages_are_left_alone(self):
        text = "server { listen 1; } $host {{ Not a place }}"
        self.assertEqual(template.render(text, {}), text)


class Merging(unittest.TestCase):
    def test_tables_are_merged_and_values_replaced(self):
        base = {"a": 1, "t": {"x": 1, "y": 2}, "list": [1, 2]}
        change = {"t": {"y": 3, "z": 4}, "list": [5]}
        self.assertEqual(template.merge(base, change), {"a": 1, "t": {"x": 1, "y": 3, "z": 4}, "list": [5]})
        self.assertEqual(base["t"], {"x": 1, "y": 2})

    def test_lists_of_tables_are_merged_place_by_place(self):
        base = {"listen": [{"port": 1, "key": "k"}]}
        change = {"listen": [{"port": 2}, {"port": 3}]}
        self.assertEqual(template.merge(base, change)["listen"], [{"port": 2, "key": "k"}, {"port": 3}])
        self.assertEqual(template.merge({"listen": [{"a": 1}, {"b": 2}]}, {"listen": [{}]})["listen"], [{"a": 1}, {"b": 2}])

    def test_what_is_written_reads_back_the_same(self):
        table = {"id": 'a "quoted"\\ word\n', "cores": [0, 1], "on": True, "share": 0.5,
                 "worker": {"wait": "0s", "deep": {"x": 1}}, "listen": [{"a": 1, "b": {"c": 2}}, {"a": 2}]}
        self.assertEqual(tomllib.loads(template.toml_text(table)), table)

    def test_a_pop_takes_experiments_without_meeting_itself(self):
        text = template.render_peer("pop.toml", POP, ('[worker]\nbatch_wait = "0s"\n', "[[listen]]\nfast_open = 0\n", ""))
        table = tomllib.loads(text)
        self.assertEqual(table["worker"]["batch_wait"], "0s")
        self.assertEqual(table["listen"], [{"address": "127.0.0.1:1", "certificate": "certs/pop.pem", "key": "certs/pop.key",
                                            "tunnel": "web", "tunnel_early_data": "allow", "fast_open": 0}])

    def test_two_changes_of_one_table_are_both_there(self):
        text = template.render_peer("pop.toml", POP, ("[backbone]\ntls = false\n", "backbone.trunks_per_core = 1\n"))
        backbone = tomllib.loads(text)["backbone"]
        self.assertEqual((backbone["tls"], backbone["trunks_per_core"]), (False, 1))


if __name__ == "__main__":
    unittest.main()
