#!/usr/bin/env bash
# Three network namespaces (phone, pop, dc) joined by emulated links (examples/link, docs/LINKS.md).
#
#   net.sh up PROFILE [--seed N]     makes them and prints shell variables; what the same NET_PREFIX made before is removed first
#   net.sh exec phone|pop|dc CMD…    runs a command in one
#   net.sh begin                     time zero and packet zero of the links again: the same fates as after `up`
#   net.sh stats                     what the links have done since, as JSON
#   net.sh down                      removes everything `up` made, and nothing else
#
# PROFILE: a name from examples/link/profiles/ (good p50 p75 p95 p99 congested switch clean), or the path of a .toml file.
# Addresses: phone 10.77.1.1 - pop 10.77.1.2; pop 10.77.2.1 - dc 10.77.2.2; phone 10.77.3.1 - dc 10.77.3.2. MTU 1500, no offloads.
# Environment: NET_PREFIX (default tl) keeps two runs apart; LINK, the emulator (default target/release/examples/link, else debug);
# NET_CORES, a list of cores it is kept to (default: any); NET_STATE, where its notes are (default /run/trunkline-net).
# Needs: root, /dev/net/tun, iproute2; cargo build --release --example link.
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
prefix=${NET_PREFIX:-tl}
state=${NET_STATE:-/run/trunkline-net}/$prefix
names=(phone pop dc)

fail() { echo "net.sh: $1" >&2; exit 2; }
usage() { sed --quiet '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2; exit 2; }

[[ $prefix =~ ^[a-z0-9-]{1,16}$ ]] || fail "NET_PREFIX is '$prefix': use up to 16 of a-z, 0-9 and -"

# When a process started, in clock ticks since boot: with the pid it names a process for good.
started_at() { sed 's/.*) //' "/proc/$1/stat" 2> /dev/null | cut --delimiter=' ' --fields=20; }

# The emulator's pid, if it is still the process that `up` started.
emulator_pid() {
    local pid started
    read -r pid started 2> /dev/null < "$state/emulator" || return 1
    [ "$(started_at "$pid")" = "$started" ] && echo "$pid"
}

find_emulator() {
    local candidate
    for candidate in ${LINK:+"$LINK"} "$root/target/release/examples/link" "$root/target/debug/examples/link"; do
        if [ -x "$candidate" ]; then echo "$candidate"; return; fi
        [ -z "${LINK:-}" ] || fail "LINK is '$LINK', which cannot be run"
    done
    fail 'no emulator: cargo build --release --example link'
}

find_profile() {
    local file=$root/examples/link/profiles/$1.toml
    if [[ $1 != */* && -f $file ]]; then echo "$file"; return; fi
    if [[ $1 == *.toml && -f $1 ]]; then echo "$1"; return; fi
    local known
    known=$(cd "$root/examples/link/profiles" && printf '%s ' *.toml)
    fail "no profile '$1': one of ${known//.toml/}or the path of a .toml file"
}

# Packets that a device holds for the emulator while the machine is busy: 0.2 s at 200 Mbit/s.
device_packets_max=4096

set_up_device() { # namespace device address
    # No packets but those of the measurement: no IPv6 housekeeping, no multicast.
    ip --netns "$1" link set dev "$2" mtu 1500 txqueuelen "$device_packets_max" multicast off addrgenmode none
    ip --netns "$1" address add "$3/30" dev "$2"
    ip --netns "$1" link set dev "$2" up
}

wait_for() { # description, command…
    local what=$1 tries
    shift
    for ((tries = 0; tries < 200; tries++)); do
        if "$@"; then return; fi
        emulator_pid > /dev/null || fail "the emulator ended: $(cat "$state/log")"
        sleep 0.05
    done
    fail "$what did not come about in 10 s: $(cat "$state/log")"
}

start_emulator() { # program profile seed
    local run=()
    [ -z "${NET_CORES:-}" ] || run+=(taskset --cpu-list "$NET_CORES")
    # Small shares of a core, but at once when due: a busy machine must not add to the delays. Niceness is the second choice: it
    # counts within a session only where the kernel groups by session.
    if chrt --fifo 1 true 2> /dev/null; then run+=(chrt --fifo 1)
    elif nice --adjustment=-20 true 2> /dev/null; then run+=(nice --adjustment=-20); fi
    setsid "${run[@]}" "$1" run --profile "$2" --seed "$3" --stats "$state/stats.json" \
        --stretch "phone_pop=$prefix-phone/pop,$prefix-pop/phone" \
        --stretch "pop_dc=$prefix-pop/dc,$prefix-dc/pop" \
        --stretch "phone_dc=$prefix-phone/dc,$prefix-dc/phone" \
        > "$state/log" 2>&1 < /dev/null 9>&- &
    echo "$! $(started_at $!)" > "$state/emulator"
}

up() { # profile [--seed N]
    local profile_name=${1:-} seed=1 program profile name
    [ -n "$profile_name" ] || usage
    shift
    while [ $# -gt 0 ]; do
        case $1 in
            --seed) seed=${2:-}; [[ $seed =~ ^[0-9]{1,18}$ ]] || fail "--seed is '$seed': give a number"; shift 2 ;;
            --netem) refuse_netem ;;
            *) usage ;;
        esac
    done
    [ "$(id --user)" -eq 0 ] || fail 'namespaces and TUN devices need root'
    [ -c /dev/net/tun ] || fail 'no /dev/net/tun: modprobe tun'
    program=$(find_emulator)
    profile=$(find_profile "$profile_name")
    "$program" describe --profile "$profile" > /dev/null || exit 2
    down
    for name in "${names[@]}"; do
        [ ! -e "/run/netns/$prefix-$name" ] || fail "namespace $prefix-$name exists and is not ours: set NET_PREFIX to another word"
    done
    mkdir --parents "$state"
    trap 'down' EXIT
    for name in "${names[@]}"; do
        ip netns add "$prefix-$name"
        echo "$prefix-$name" >> "$state/namespaces"
        ip --netns "$prefix-$name" link set dev lo up
    done
    start_emulator "$program" "$profile" "$seed"
    wait_for 'the emulator' test -s "$state/stats.json"
    set_up_device "$prefix-phone" pop 10.77.1.1
    set_up_device "$prefix-pop" phone 10.77.1.2
    set_up_device "$prefix-pop" dc 10.77.2.1
    set_up_device "$prefix-dc" pop 10.77.2.2
    set_up_device "$prefix-phone" dc 10.77.3.1
    set_up_device "$prefix-dc" phone 10.77.3.2
    begin
    trap - EXIT
    variables "$profile_name" "$profile" "$seed"
}

variables() { # profile-name profile-file seed
    cat << VARIABLES
NET_PREFIX=$prefix
NET_PROFILE=$1
NET_PROFILE_FILE=$2
NET_SEED=$3
NET_NAMESPACE_PHONE=$prefix-phone
NET_NAMESPACE_POP=$prefix-pop
NET_NAMESPACE_DC=$prefix-dc
NET_PHONE_ADDRESS=10.77.1.1
NET_POP_ADDRESS=10.77.1.2
NET_POP_TO_DC_ADDRESS=10.77.2.1
NET_DC_ADDRESS=10.77.2.2
NET_PHONE_DIRECT_ADDRESS=10.77.3.1
NET_DC_DIRECT_ADDRESS=10.77.3.2
NET_EMULATOR_PID=$(emulator_pid)
NET_STATS=$state/stats.json
VARIABLES
}

# netem over veth would be the other way to do this. It is not driven from here: the two were never compared (docs/LINKS.md).
refuse_netem() {
    local probe=$prefix-netem-probe has=no
    ip netns add "$probe"
    ip netns exec "$probe" tc qdisc add dev lo root netem delay 1ms 2> /dev/null && has=yes
    ip netns delete "$probe"
    [ $has = yes ] || fail 'this kernel has no netem (CONFIG_NET_SCH_NETEM); leave --netem out'
    fail 'this kernel has netem, but this script does not use it: it was never compared with the emulator; leave --netem out'
}

field() { python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$state/stats.json" "$1"; }

have_begun() { [ "$(field begun)" -gt "$1" ]; }

begin() {
    local pid before
    pid=$(emulator_pid) || fail 'nothing is up'
    before=$(field begun)
    kill -HUP "$pid"
    wait_for 'a new beginning' have_begun "$before"
}

is_rewritten() { [ "$(stat --format=%i "$state/stats.json")" != "$1" ]; }

stats() {
    local pid before
    pid=$(emulator_pid) || fail 'nothing is up'
    before=$(stat --format=%i "$state/stats.json")
    kill -USR1 "$pid"
    wait_for 'a report' is_rewritten "$before"
    cat "$state/stats.json"
}

down() {
    local pid tries name left
    [ -d "$state" ] || return 0
    if pid=$(emulator_pid); then
        # A stopped process takes the signal once it goes on.
        kill -TERM "$pid" && kill -CONT "$pid"
        for ((tries = 0; tries < 100; tries++)); do emulator_pid > /dev/null || break; sleep 0.02; done
        ! emulator_pid > /dev/null || kill -KILL "$pid"
    fi
    while read -r name; do
        [ -e "/run/netns/$name" ] || continue
        left=$(ip netns pids "$name" | tr '\n' ' ')
        [ -z "$left" ] || echo "net.sh: still running in $name, left alone: $left" >&2
        ip netns delete "$name"
    done < <(cat "$state/namespaces" 2> /dev/null)
    rm --force --recursive "$state"
}

in_namespace() { # phone|pop|dc command…
    local name=${1:-}
    [[ " ${names[*]} " == *" $name "* && $# -gt 1 ]] || usage
    [ -e "$state/namespaces" ] || fail 'nothing is up: net.sh up PROFILE'
    shift
    exec ip netns exec "$prefix-$name" "$@"
}

action=${1:-}
[ $# -eq 0 ] || shift
case $action in
    up | down | begin | stats)
        # One at a time: two that make and remove the same namespaces would undo each other.
        mkdir --parents "$(dirname "$state")"
        exec 9> "$state.lock"
        flock 9
        "$action" "$@"
        ;;
    exec) in_namespace "$@" ;;
    *) usage ;;
esac
