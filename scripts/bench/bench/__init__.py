"""The bench of Trunkline beside nginx and HAProxy. `scripts/bench/run.sh --help` says how to run it.

    cases     what is measured, as a table; runners: how a kind of case is measured
    site      certificates, ports, origin, contestants and their processes
    process   CPU, memory and end of a process and all its children
    tools     wrk, h2load, trunkline load: commands, and what their output says
    stats     medians, spreads, ratios; targets: the acceptance list as data
    report    tables and docs/BENCHMARKS.md; charts: SVG; machine: what it ran on
    template  configurations of the peers

Standard library only. Nothing here ends a process that it did not start.
"""
