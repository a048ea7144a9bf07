"""Configurations of peers: files with `{{name}}` or `{{name=default}}` in them, and TOML that is merged into TOML.

A value that is missing, and one that no place asks for, are errors: a bench with a mistyped setting measures something
else. Acceptance scripts use this as a command: `python3 -m bench.template FILE name=value... [--merge TOML]`.
"""

import json
import re
import sys
import tomllib
from pathlib import Path

PEERS = Path(__file__).resolve().parent.parent / "peers"
PLACE = re.compile(r"\{\{([a-z][a-z0-9_]*)(?:=([^}]*))?\}\}")


class TemplateError(Exception):
    """A place without a value, or a value without a place."""


def render(text: str, values: dict, where: str = "template") -> str:
    """Fills every place of `text`; all names in `values` must have one."""
    asked = set()

    def fill(match: re.Match) -> str:
        name, default = match.group(1), match.group(2)
        asked.add(name)
        if name in values:
            return str(values[name])
        if default is None:
            raise TemplateError(f"{where}: no value for {name}")
        return default

    done = PLACE.sub(fill, text)
    unknown = sorted(set(values) - asked)
    if unknown:
        raise TemplateError(f"{where}: no place for {', '.join(unknown)}")
    return done


def merge(base: dict, change: dict) -> dict:
    """`change` laid over `base`: tables key by key, lists of tables place by place, everything else replaced."""
    merged = dict(base)
    for key, value in change.items():
        old = merged.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            merged[key] = merge(old, value)
        elif are_tables(old) and are_tables(value):
            pairs = [merge(*pair) for pair in zip(old, value)]
            merged[key] = pairs + old[len(pairs):] + value[len(pairs):]
        else:
            merged[key] = value
    return merged


def are_tables(value) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(entry, dict) for entry in value)


def toml_text(table: dict, path: tuple = ()) -> str:
    """TOML of a table as `tomllib` gives it; strings, numbers, booleans, lists of them, and tables."""
    own, below = [], []
    for key, value in table.items():
        if isinstance(value, dict):
            below.append(f"[{'.'.join((*path, key))}]\n" + toml_text(value, (*path, key)))
        elif are_tables(value):
            header = f"[[{'.'.join((*path, key))}]]\n"
            below.extend(header + toml_text(entry, (*path, key)) for entry in value)
        else:
            # What JSON writes for these is what TOML reads.
            own.append(f"{key} = {json.dumps(value)}\n")
    return "".join(own + below)


def render_peer(name: str, values: dict, changes: tuple = ()) -> str:
    """The configuration of a peer; `changes` are pieces of TOML, each laid over what is there."""
    text = render((PEERS / name).read_text(), values, name)
    changes = [change for change in changes if change.strip()]
    if not changes:
        return text
    table = tomllib.loads(text)
    for change in changes:
        table = merge(table, tomllib.loads(change))
    return toml_text(table)


def main(arguments: list) -> int:
    """Prints a rendered peer."""
    changes = []
    while "--merge" in arguments:
        at = arguments.index("--merge")
        changes.append(arguments[at + 1])
        arguments = arguments[:at] + arguments[at + 2:]
    name, *values = arguments
    try:
        print(render_peer(name, dict(value.split("=", 1) for value in values), tuple(changes)), end="")
    except (TemplateError, tomllib.TOMLDecodeError, OSError, ValueError) as error:
        print(f"bench.template: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
