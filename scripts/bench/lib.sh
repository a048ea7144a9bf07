# shellcheck shell=bash disable=SC2034,SC2154
# What the scripts at full size share: Debian packages, processes ended by their ids, waiting, reporting, figures of the
# admin address, and configurations from scripts/bench/peers. Sourced, never run; `set -euo pipefail` is the caller's.
#
# Uses: work (a directory of the caller's), pids (name to process id), missed (1 once something was).

bench_directory=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
declare -A pids=()
missed=0
second_core=$(($(nproc) > 1 ? 1 : 0))

# Installs Debian packages of which the file that shows their presence is missing: 'package /path' each.
install_missing() {
    local missing=() entry as_root=()
    for entry in "$@"; do
        [ -e "${entry#* }" ] || missing+=("${entry%% *}")
    done
    if [ ${#missing[@]} -eq 0 ]; then
        echo 'nothing is missing'
        return
    fi
    if [ "$(id --user)" -ne 0 ]; then
        command -v sudo > /dev/null || {
            echo "missing: ${missing[*]}. Run as root, or once: apt-get install ${missing[*]}" >&2
            return 1
        }
        as_root=(sudo --non-interactive)
    fi
    echo "installing: ${missing[*]}"
    "${as_root[@]}" apt-get update --quiet=2
    # Whoever calls starts servers of its own. This keeps Debian's from starting now where invoke-rc.d starts them; what
    # systemd has enabled starts at the next boot: systemctl disable nginx haproxy, if that is not wanted.
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
        apt-get install --quiet=2 --yes --no-install-recommends "${missing[@]}" < /dev/null
}

stop() { # name
    [ -n "${pids[$1]:-}" ] || return 0
    kill -CONT "${pids[$1]}" 2> /dev/null || true
    kill "${pids[$1]}" 2> /dev/null || true
    wait "${pids[$1]}" 2> /dev/null || true
    unset "pids[$1]"
}

# Ends what was started here, by the ids it was started with.
clean_up() {
    local name
    exec 8>&- 2> /dev/null || true
    for name in "${!pids[@]}"; do stop "$name"; done
    rm --recursive --force "$work"
}

report() { # point, right or wrong (0/1), text
    if [ "$2" -eq 0 ]; then
        printf 'ok      %s: %s\n' "$1" "$3"
    else
        printf 'MISSED  %s: %s\n' "$1" "$3"
        missed=1
    fi
}

fail() {
    echo "cannot go on: $1" >&2
    tail --lines 20 "$work"/*.log >&2 || true
    exit 1
}

wait_for() { # seconds, text, command...
    local until=$((SECONDS + $1)) what=$2
    shift 2
    until "$@"; do
        [ "$SECONDS" -lt "$until" ] || fail "not in time: $what"
        sleep 0.05
    done
}

# A first port of a row that is free: outside the range from which the kernel takes the ports of connections.
port_row() { echo $((12000 + $$ % 15000)); }

is_ready() { curl --silent --fail --output /dev/null "http://$1/ready"; }

admin_figure() { # admin address, name; sums over labels when the name has none
    curl --silent --fail "http://$1/metrics" \
        | awk -v name="$2" '$1 == name || index($1, name "{") == 1 { sum += $2; found = 1 } END { print sum + 0; exit !found }'
}

render_peer() { # file of scripts/bench/peers, name=value..., --merge TOML
    PYTHONPATH=$bench_directory python3 -m bench.template "$@"
}
