#!/usr/bin/python3
"""Reads an OpenMetrics text with the reference parser and fails when the parser does.

usage: openmetrics-check.py FILE|URL|-      (Debian: python3-prometheus-client)
"""

import sys
import urllib.request

from prometheus_client.openmetrics.parser import text_string_to_metric_families

source = sys.argv[1] if len(sys.argv) == 2 else sys.exit(__doc__)
if source == "-":
    text = sys.stdin.read()
elif source.startswith("http://"):
    with urllib.request.urlopen(source, timeout=5) as answer:
        kind = answer.headers["Content-Type"]
        if kind != "application/openmetrics-text; version=1.0.0; charset=utf-8":
            sys.exit(f"content type is {kind}")
        text = answer.read().decode("utf-8")
else:
    with open(source, encoding="utf-8") as file:
        text = file.read()

families = list(text_string_to_metric_families(text))
samples = sum(len(family.samples) for family in families)
if samples == 0:
    sys.exit("no samples")
print(f"{len(families)} families, {samples} samples")
