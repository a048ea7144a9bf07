#!/usr/bin/env bash
# Checks that what the emulated links were asked for is what ping and flows see, and prints a table: asked, seen, ok.
#
# Usage: scripts/bench/net-check.sh [PROFILE…]      default: all of examples/link/profiles/; about a minute each
# Environment: NET_PREFIX (default tlcheck), NET_SEED (default 1), NET_CHECK_SECONDS (of ping, default 24), LINK and NET_CORES as net.sh
# has them. Exit 1: something differs by more than chance and a millisecond explain. Exit 2: could not run.
# Needs: what net.sh needs, python3, ping (apt-get install iputils-ping).
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
export NET_PREFIX=${NET_PREFIX:-tlcheck}
for tool in python3 ping ip; do
    command -v "$tool" > /dev/null || { echo "$tool is missing: apt-get install python3 iputils-ping iproute2" >&2; exit 2; }
done
profiles=("$@")
if [ ${#profiles[@]} -eq 0 ]; then
    for file in "$root"/examples/link/profiles/*.toml; do profiles+=("$(basename "$file" .toml)"); done
fi
emulator=${LINK:-$root/target/release/examples/link}
[ -x "$emulator" ] || emulator=$root/target/debug/examples/link

trap '"$here/net.sh" down' EXIT

# One profile, from up to down. Exit 1: it differs; 3: the machine was too busy for the figures to mean anything.
check() { # profile
    local variables file status=0
    variables=$("$here/net.sh" up "$1" --seed "${NET_SEED:-1}") || return 2
    file=$(sed --quiet 's/^NET_PROFILE_FILE=//p' <<< "$variables")
    "$emulator" describe --profile "$file" \
        | python3 "$here/net_check.py" "$here/net.sh" "$1" "${NET_CHECK_SECONDS:-24}" || status=$?
    "$here/net.sh" down
    return "$status"
}

differs=0
printf '| profile | stretch | what | asked | seen | within | ok |\n|---|---|---|---|---|---|---|\n'
for profile in "${profiles[@]}"; do
    for attempt in 1 2 3; do
        status=0
        rows=$(check "$profile") || status=$?
        [ "$status" -eq 3 ] || break
        echo "$profile: attempt $attempt of 3 does not count" >&2
    done
    printf '%s\n' "$rows"
    case $status in
        0) ;;
        1 | 3) differs=1 ;;
        *) exit 2 ;;
    esac
done
exit "$differs"
