#!/usr/bin/env bash
# Measures Trunkline beside nginx and HAProxy, all on this machine: every case of the table in bench/cases.py, in about forty
# minutes, or five with --quick. Writes bench-results/*.json and, after a full run, docs/BENCHMARKS.md with its charts.
# Installs from Debian what is missing, and builds a release unless TRUNKLINE names one, or root has no cargo and it is built.
#
#   scripts/bench/run.sh                        everything
#   scripts/bench/run.sh --quick                to see that everything works
#   scripts/bench/run.sh --list                 the cases, and how long each takes
#   scripts/bench/run.sh --only small-64,bulk   some cases; --help tells the rest
#   scripts/bench/run.sh --only small-64 --pop-config 'worker.batch_wait = "0s"'
#   scripts/bench/run.sh --compare A B          how far the ratios of two runs are apart, from their results
#
# Cases over emulated links want root; without it they are skipped, which is told, and makes the exit code 1 unless
# `--skip link` asked for it. As a user with sudo: cargo build --release && cargo build --release --example link, then
# sudo scripts/bench/run.sh. Wants two cores, and a machine with nothing else to do; what else runs is told.
#
# Exit codes: 0 all that was asked for was measured, targets missed included unless --strict; 1 something was not, or two
# runs differ (--compare); 2 it cannot begin.
# Environment: TRUNKLINE, LINK (paths of binaries; built if not set). What TRUNKLINE names is of a commit that nobody here
# knows: results go to bench-results/try, and docs/ stays as it is.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$here/lib.sh"

# A binary of this checkout. Root often has no cargo: then one that is there and newer than its sources does.
build() { # path, arguments of cargo...
    local newer remedy
    if ! command -v cargo > /dev/null; then
        remedy='build as yourself: cargo build --release && cargo build --release --example link; then run this again'
        [ -x "$1" ] || { echo "no cargo in the PATH, and no $1: $remedy" >&2; exit 2; }
        newer=$(find "$root/src" "$root/examples/link" "$root/Cargo.toml" "$root/Cargo.lock" -type f -newer "$1" -print -quit)
        [ -z "$newer" ] || { echo "no cargo in the PATH, and $1 is older than $newer: $remedy" >&2; exit 2; }
        return
    fi
    command -v cc > /dev/null || { echo 'no C compiler, which a dependency is built with: apt-get install gcc' >&2; exit 2; }
    echo "building: cargo build --release ${*:2}"
    cargo build --release --quiet --manifest-path "$root/Cargo.toml" "${@:2}" || exit 2
}

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
    if [ -z "${TRUNKLINE:-}" ]; then build "$root/target/release/trunkline"; fi
    if [ -z "${LINK:-}" ]; then build "$root/target/release/examples/link" --example link; fi
fi
exec env PYTHONPATH="$here" python3 -m bench "$@"
