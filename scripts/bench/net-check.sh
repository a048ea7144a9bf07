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
differs=0
printf '| profile | stretch | what | asked | seen | within | ok |\n|---|---|---|---|---|---|---|\n'
for profile in "${profiles[@]}"; do
    variables=$("$here/net.sh" up "$profile" --seed "${NET_SEED:-1}")
    file=$(sed --quiet 's/^NET_PROFILE_FILE=//p' <<< "$variables")
    "$emulator" describe --profile "$file" \
        | python3 "$here/net_check.py" "$here/net.sh" "$profile" "${NET_CHECK_SECONDS:-24}" || { [ $? -eq 1 ] && differs=1 || exit 2; }
    "$here/net.sh" down
done
exit "$differs"
