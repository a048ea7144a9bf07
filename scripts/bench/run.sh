#!/usr/bin/env bash
# Measures Trunkline beside nginx and HAProxy, all on this machine: every case of the table in bench/cases.py, in about half
# an hour, or five minutes with --quick. Writes bench-results/*.json and, after a full run, docs/BENCHMARKS.md with its charts.
# Installs from Debian what is missing (needs root or sudo for that alone), builds a release unless TRUNKLINE names one.
#
#   scripts/bench/run.sh                        everything
#   scripts/bench/run.sh --quick                to see that everything works
#   scripts/bench/run.sh --list                 the cases, and how long each takes
#   scripts/bench/run.sh --only small-64,bulk   some cases; --help tells the rest
#   scripts/bench/run.sh --only small-64 --pop-config 'worker.batch_wait = "0s"'
#
# Cases over emulated links want root. Wants two cores, and a machine with nothing else to do; what else runs is told.
# Environment: TRUNKLINE, NEWCOMERS, LINK (paths of binaries; built if not set).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$here/lib.sh"

measures=yes
for argument in "$@"; do
    case $argument in --list | --report | --compare | --help | -h) measures=no ;; esac
done

python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo 'python3 is older than 3.11, which the bench is written for: use Debian 12 or newer' >&2
    exit 2
}

if [ "$measures" = yes ]; then
    install_missing 'nginx /usr/sbin/nginx' 'libnginx-mod-stream /usr/lib/nginx/modules/ngx_stream_module.so' \
        'haproxy /usr/sbin/haproxy' 'wrk /usr/bin/wrk' 'nghttp2-client /usr/bin/h2load' 'curl /usr/bin/curl' \
        'util-linux /usr/bin/taskset' 'iproute2 /usr/sbin/ip'
    if [ -z "${TRUNKLINE:-}" ]; then
        echo 'building: cargo build --release'
        cargo build --release --quiet --manifest-path "$root/Cargo.toml"
    fi
    for example in NEWCOMERS LINK; do
        if [ -z "${!example:-}" ] && [ -d "$root/examples/${example,,}" ]; then
            cargo build --release --quiet --manifest-path "$root/Cargo.toml" --example "${example,,}"
        fi
    done
fi
exec env PYTHONPATH="$here" python3 -m bench "$@"
