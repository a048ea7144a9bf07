#!/usr/bin/env bash
# shellcheck disable=SC2317
# The acceptance of the main path at full size, with a release build and Debian's nginx, wrk, curl and openssl on loopback:
# a figure per point, and exit 1 if one is missed. Not part of CI: it wants a quiet machine with two cores for some
# minutes. Usage: scripts/acceptance.sh [POINT...]   points: 2 3 4 5; all of them unless named.
set -euo pipefail
cd "$(dirname "$0")/.."

points=("$@")
[ ${#points[@]} -gt 0 ] || points=(2 3 4 5)

cargo build --release --quiet
trunkline=$PWD/target/release/trunkline
work=$(mktemp --directory --tmpdir trunkline-acceptance-XXXXXX)
# shellcheck source-path=SCRIPTDIR source=bench/lib.sh
source scripts/bench/lib.sh
trap clean_up EXIT

port_base=$(port_row)
nginx_port=$port_base
gateway_port=$((port_base + 1))
pop_port=$((port_base + 2))
gateway_admin=127.0.0.1:$((port_base + 3))
pop_admin=127.0.0.1:$((port_base + 4))
https=https://localhost:$pop_port

start_gateway() {
    "$trunkline" gateway --config "$work/gateway.toml" 2>> "$work/gateway.log" &
    pids[gateway]=$!
}

set_up() {
    "$trunkline" certs --out "$work/certs" --name localhost > /dev/null
    mkdir --parents "$work/www/store"
    printf '%0281d' 0 > "$work/www/small"
    head --bytes 256M /dev/urandom > "$work/www/large"
    chmod 755 "$work"
    render_peer nginx-origin.conf directory="$work" address=127.0.0.1 origin_port="$nginx_port" > "$work/origin.conf"
    render_peer gateway.toml core="$second_core" address=127.0.0.1 gateway_port="$gateway_port" origin_address=127.0.0.1 \
        origin_port="$nginx_port" admin_port="${gateway_admin#*:}" > "$work/gateway.toml"
    render_peer pop.toml core=0 address=127.0.0.1 pop_port="$pop_port" gateway_address=127.0.0.1 gateway_port="$gateway_port" \
        admin_port="${pop_admin#*:}" > "$work/pop.toml"
    /usr/sbin/nginx -p "$work" -c "$work/origin.conf" -e "$work/origin-error.log" 2>> "$work/origin.log" &
    pids[nginx]=$!
    start_gateway
    "$trunkline" pop --config "$work/pop.toml" 2> "$work/pop.log" &
    pids[pop]=$!
    wait_for 10 'POP and gateway are ready' is_ready "$pop_admin"
}

has_no_clients() {
    [ "$(admin_figure "$pop_admin" trunkline_connections_open)" -eq 0 ] \
        && [ "$(admin_figure "$pop_admin" trunkline_streams_open)" -eq 0 ] \
        && [ "$(admin_figure "$gateway_admin" trunkline_streams_open)" -eq 0 ] \
        && [ "$(admin_figure "$pop_admin" trunkline_links_open)" -eq "$(admin_figure "$pop_admin" trunkline_trunks_ready)" ]
}

settle() {
    sleep 0.5 # workers publish every 200 ms
    wait_for 15 'nothing of the clients is left' has_no_clients
}

counters() {
    local id=${pids[pop]}
    printf 'links_open=%s streams_open=%s buffers_lent=%s descriptors=%s anonymous_kib=%s' \
        "$(admin_figure "$pop_admin" trunkline_links_open)" "$(admin_figure "$pop_admin" trunkline_streams_open)" \
        "$(admin_figure "$pop_admin" trunkline_buffers_lent)" "$(find "/proc/$id/fd" -mindepth 1 | wc --lines)" \
        "$(awk '/^RssAnon/ { print $2 }' "/proc/$id/status")"
}

digest() { sha256sum "$1" | cut --delimiter ' ' --fields 1; }

ca() { curl --silent --show-error --fail --cacert "$work/certs/ca.pem" "$@"; }

get_one() { # index
    ca --output "$work/got-$1" "$https/large"
    [ "$(digest "$work/got-$1")" = "$large_digest" ] || return 1
    rm "$work/got-$1"
}

put_one() {
    ca --upload-file "$work/www/large" "$https/store/$1" > /dev/null
    [ "$(digest "$work/www/store/$1")" = "$large_digest" ] || return 1
    rm "$work/www/store/$1"
}

eight() { # function
    local jobs=() index wrong=0
    for index in 1 2 3 4 5 6 7 8; do "$1" "$index" & jobs+=($!); done
    for index in "${jobs[@]}"; do wait "$index" || wrong=1; done
    return "$wrong"
}

timed() { # point, text, command...
    local point=$1 what=$2 began wrong=0
    shift 2
    began=$(date +%s%N)
    "$@" || wrong=1
    report "$point" "$wrong" "$what in $((($(date +%s%N) - began) / 1000000)) ms"
}

point_2() {
    large_digest=$(digest "$work/www/large")
    timed 2 'curl gets a page' ca --output /dev/null "$https/small"
    timed 2 'GET 256 MiB, sha256 right' get_one 0
    timed 2 'PUT 256 MiB, sha256 right' put_one 0
    timed 2 'GET 256 MiB 8 at a time, sha256 right' eight get_one
    timed 2 'PUT 256 MiB 8 at a time, sha256 right' eight put_one

    local said wrong=0
    said=$(wrk --threads 1 --connections 256 --duration 30s "$https/small")
    grep --quiet --extended-regexp 'Socket errors|Non-2xx' <<< "$said" && wrong=1
    report 2 "$wrong" "wrk -c256 30 s: $(awk '/requests in|Socket errors|Non-2xx|Requests\/sec/ { $1 = $1; printf "%s; ", $0 }' <<< "$said")"

    settle
    open_and_close > "$work/rounds" || report 2 1 'opening and closing connections'
    cat "$work/rounds"
    local first last
    # The first rounds fill what is kept for reuse; from then on nothing may grow.
    first=$(awk 'NR == 5' "$work/rounds")
    last=$(awk 'END { print }' "$work/rounds")
    wrong=0
    [ "$(sed 's/ anonymous.*//; s/^[^:]*//' <<< "$first")" = "$(sed 's/ anonymous.*//; s/^[^:]*//' <<< "$last")" ] || wrong=1
    [ "${last##*=}" -le $((${first##*=} * 105 / 100 + 512)) ] || wrong=1
    report 2 "$wrong" '1 000 connections opened and closed 20 times: counters above'
}

open_and_close() {
    local round
    for round in $(seq 20); do
        # wrk keeps its connections: this opens a thousand, uses every other one, and closes them all.
        /usr/bin/python3 - "$pop_port" "$work/certs/ca.pem" << 'PYTHON'
import resource, socket, ssl, sys
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
context = ssl.create_default_context(cafile=sys.argv[2])
held = []
for _ in range(1000):
    raw = socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=20)
    held.append(context.wrap_socket(raw, server_hostname="localhost"))
for client in held[::2]:
    client.sendall(b"GET /small HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
for client in held[::2]:
    answer = b""
    while piece := client.recv(65536):
        answer += piece
    assert answer.endswith(b"0"), answer
for client in held:
    client.close()
PYTHON
        settle
        printf 'round %2d: %s\n' "$round" "$(counters)"
    done
}

point_3() {
    local url=mmtp://localhost:$pop_port/pay/small wrong=0
    "$trunkline" call --ca "$work/certs/ca.pem" "$url" > "$work/answer" || wrong=1
    cmp --silent "$work/answer" "$work/www/small" || wrong=1
    report 3 "$wrong" "trunkline call $url gives nginx's answer"
    wrong=0
    "$trunkline" call --ca "$work/certs/ca.pem" --report json --repeat 10000 --outstanding 100 "$url" \
        > "$work/answer" 2> "$work/report" || wrong=1
    cmp --silent "$work/answer" "$work/www/small" || wrong=1
    grep --quiet '"answered":10000,' "$work/report" && grep --quiet '"connections":1,' "$work/report" \
        && grep --quiet '"differing":0,' "$work/report" || wrong=1
    report 3 "$wrong" "10 000 calls with 100 outstanding: $(cat "$work/report")"
}

point_4() {
    local wrong=0 expected
    printf 'GET /large HTTP/1.0\r\n\r\n' | timeout 60 openssl s_client -quiet -verify_return_error \
        -CAfile "$work/certs/ca.pem" -connect "localhost:$pop_port" > "$work/answer" 2> /dev/null || wrong=1
    expected=$(stat --format %s "$work/www/large")
    [ "$(tail --bytes "$expected" "$work/answer" | sha256sum)" = "$(sha256sum < "$work/www/large")" ] || wrong=1
    report 4 "$wrong" "openssl s_client whose input has ended gets $(stat --format %s "$work/answer") bytes, whole"
    wrong=0
    # Both directions, with close_notify of our side before the answer: no command line tool does that.
    cargo test --quiet --test loopback -- tunnel::a_client_that_ends tunnel::an_origin_that_ends > "$work/half" 2>&1 \
        || wrong=1
    report 4 "$wrong" "half-close in both directions: $(grep 'test result' "$work/half" | cut --delimiter ';' --fields 1)"
}

# Batches of calls, one line of JSON each: how many were answered, and how many failed with which receipt.
calls_go_on() {
    while [ ! -e "$work/stop" ]; do
        "$trunkline" call --ca "$work/certs/ca.pem" --report json --timeout 10s --repeat 2000 --outstanding 50 \
            "mmtp://localhost:$pop_port/pay/small" 2>> "$work/reports" > /dev/null || true
    done
}

sum_of() { grep '^{' "$work/reports" | grep --only-matching "\"$1\":[0-9]*" | awk -F : '{ sum += $2 } END { print sum + 0 }'; }

answers_again() { ca --max-time 1 --output /dev/null "$https/small" 2> /dev/null; }

point_5() {
    local round began recovery worst=0 caller wrong=0 wrk_id
    : > "$work/reports"
    calls_go_on & caller=$!
    pids[caller]=$caller
    wrk --threads 1 --connections 64 --duration 12s "$https/small" > "$work/wrk" &
    wrk_id=$!
    for round in 1 2 3; do
        sleep 2
        kill -KILL "${pids[gateway]}"
        wait "${pids[gateway]}" 2> /dev/null || true
        sleep 0.5
        start_gateway
        wait_for 10 'the gateway listens' is_ready "$gateway_admin"
        began=$(date +%s%N)
        wait_for 10 'the POP answers again' answers_again
        recovery=$((($(date +%s%N) - began) / 1000000))
        [ "$recovery" -le "$worst" ] || worst=$recovery
    done
    wait "$wrk_id" || true
    touch "$work/stop"
    wait "$caller" || true
    unset 'pids[caller]'
    [ "$worst" -le 2000 ] || wrong=1
    report 5 "$wrong" "gateway killed three times: the POP answers again at most $worst ms after the gateway listens"
    local calls answered failed receipts
    calls=$(sum_of calls) answered=$(sum_of answered) failed=$(sum_of failed)
    receipts=$(($(sum_of not_forwarded) + $(sum_of unknown) + $(sum_of refused)))
    wrong=0
    [ "$answered" -gt 0 ] && [ "$failed" -eq "$receipts" ] && [ $((answered + failed)) -eq "$calls" ] || wrong=1
    report 5 "$wrong" "of $calls calls $answered were answered, $failed failed, $receipts of them with a receipt (not forwarded: $(sum_of not_forwarded), unknown: $(sum_of unknown), refused: $(sum_of refused)); wrk: $(awk '/requests in|Socket errors/ { $1 = $1; printf "%s; ", $0 }' "$work/wrk")"
    settle
    report 5 0 "afterwards: $(counters)"
}

set_up
for point in "${points[@]}"; do
    "point_$point"
done
exit "$missed"
