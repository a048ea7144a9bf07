#!/usr/bin/env bash
# Checks everything that a change must not break: format, lints, documentation, citations of the specification, and all
# tests. Installs from Debian what the tests run against, if it is missing (needs root or sudo for that alone).
# A step that fails is named, and ends the run.
set -euo pipefail
cd "$(dirname "$0")/.."

step='start'
# shellcheck disable=SC2154 # the trap itself sets status
trap 'status=$?; [ "$status" -eq 0 ] || printf "\nFAILED in step: %s (exit %s)\n" "$step" "$status" >&2' EXIT

# shellcheck source-path=SCRIPTDIR source=bench/lib.sh
source scripts/bench/lib.sh

begin() {
    step=$1
    printf '\n== %s\n' "$step"
}

# Debian package and what shows that it is there.
needed=(
    'nginx /usr/sbin/nginx'
    'libnginx-mod-stream /usr/lib/nginx/modules/ngx_stream_module.so'
    'wrk /usr/bin/wrk'
    'curl /usr/bin/curl'
    'openssl /usr/bin/openssl'
    'redis-server /usr/bin/redis-server'
    'python3 /usr/bin/python3'
    'python3-prometheus-client /usr/lib/python3/dist-packages/prometheus_client'
    'ca-certificates /etc/ssl/certs/ca-certificates.crt'
    'iproute2 /sbin/ip'
)

# A workspace of one package has one set of test binaries; nextest runs each test in a process of its own.
run_tests() {
    if cargo nextest --version > /dev/null 2>&1; then
        cargo nextest run --no-fail-fast 2>&1
    else
        cargo test --no-fail-fast --lib --bins --tests 2>&1
    fi
}

begin 'what the tests need from Debian'
install_missing "${needed[@]}"

begin 'format: cargo fmt --check'
cargo fmt --check

begin 'lints: cargo clippy --all-targets -- -D warnings'
cargo clippy --quiet --all-targets -- -D warnings

# Private items too: contributors read those, and links among them rot as well.
begin 'documentation: cargo doc --no-deps --document-private-items'
RUSTDOCFLAGS='-D warnings' cargo doc --quiet --no-deps --document-private-items

if [ -x scripts/spec-coverage.sh ]; then
    begin 'every MUST of docs/MMTP.md has a test: scripts/spec-coverage.sh'
    scripts/spec-coverage.sh
fi

begin 'the bench: python3 -m unittest'
(cd scripts/bench && python3 -m unittest discover --quiet --start-directory tests --top-level-directory .)

counts=$(mktemp)
trap 'status=$?; rm --force "$counts"; [ "$status" -eq 0 ] || printf "\nFAILED in step: %s (exit %s)\n" "$step" "$status" >&2' EXIT

# About a minute of one core; without this a test run plays 2000.
export TRUNKLINE_SIM_SEEDS=${TRUNKLINE_SIM_SEEDS:-10000}

begin 'tests'
run_tests | tee "$counts"

begin 'examples in the documentation: cargo test --doc'
cargo test --doc 2>&1 | tee --append "$counts"

begin 'done'
grep --extended-regexp 'Summary|test result:' "$counts" | grep --invert-match ' 0 passed; 0 failed; 0 ignored'
echo "all checks passed in ${SECONDS} s"
