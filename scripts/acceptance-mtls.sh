#!/usr/bin/env bash
# shellcheck disable=SC2317
# The acceptance of MTLS (docs/MTLS.md) at full size, on loopback, with clients that nobody here wrote wherever there is one:
#
#   1  openssl s_client, curl and rustls resume, early data is accepted once, testssl.sh finds nothing bad
#   4  returning users over two POPs that share redis-server; redis-server stopped by SIGSTOP, killed, and back
#   5  100 000 handshakes with early data, every tenth first flight sent again: nothing is forwarded twice
#   6  a storm of full handshakes at three times capacity beside 64 established connections
#
# A figure per line, and exit 1 if one is missed. Points 2 and 3 are `scripts/bench/run.sh --only new,idle`.
# Usage: scripts/acceptance-mtls.sh [POINT...]      all of them unless named; 6 wants a quiet machine
# Environment: TRUNKLINE, NEWCOMERS (paths of the binaries; built if not set), HANDSHAKES (of point 5), RSA_BITS (of the second
# certificate), TESTSSL_OUT=FILE (keeps what testssl.sh says)
# Needs: openssl curl nginx libnginx-mod-stream wrk redis-server testssl.sh python3, two cores.
set -euo pipefail
cd "$(dirname "$0")/.."

points=("$@")
[ ${#points[@]} -gt 0 ] || points=(1 4 5 6)
handshakes=${HANDSHAKES:-100000}
rsa_bits=${RSA_BITS:-2048}
if [ -z "${TRUNKLINE:-}" ]; then cargo build --release --quiet; fi
if [ -z "${NEWCOMERS:-}" ]; then cargo build --release --quiet --example newcomers; fi
trunkline=$(realpath "${TRUNKLINE:-target/release/trunkline}")
newcomers=$(realpath "${NEWCOMERS:-target/release/examples/newcomers}")
PATH=$PATH:/usr/sbin
for tool in openssl curl nginx wrk redis-server testssl python3 taskset; do
    command -v "$tool" > /dev/null || {
        echo "$tool is missing: apt-get install openssl curl nginx libnginx-mod-stream wrk redis-server testssl.sh python3" >&2
        exit 2
    }
done
work=$(mktemp --directory --tmpdir trunkline-acceptance-XXXXXX)
# shellcheck source-path=SCRIPTDIR source=bench/lib.sh
source scripts/bench/lib.sh
trap clean_up EXIT

base=$(port_row)
origin=127.0.0.1:$base
counting_origin=127.0.0.1:$((base + 1))
trunks=127.0.0.1:$((base + 2))
decoy=127.0.0.1:$((base + 3))
redis_port=$((base + 4))
gateway_admin=127.0.0.1:$((base + 5))
# Of POP n: tunnel to nginx, tunnel to the counting origin, a certificate with an RSA key, admin.
port() { echo $((base + 10 * $1 + $2)); }
at() { echo "127.0.0.1:$(port "$1" "$2")"; }
web=0 counted=1 rsa=2 admin=3
elsewhere=(taskset --cpu-list "$second_core")

figure() { # POP, name; sums over labels when the name has none
    admin_figure "$(at "$1" "$admin")" "$2"
}

fresh_figure() { # workers publish every 200 ms
    sleep 0.5
    figure "$@"
}

field() { # JSON path, file: of its last line
    python3 -c 'import functools, json, sys; print(functools.reduce(lambda value, key: value.get(key, 0) if value else 0, sys.argv[1].split("."), json.loads(open(sys.argv[2]).readlines()[-1])))' "$1" "$2"
}

holds() { python3 -c "import sys; sys.exit(not ($1))"; }

# The listeners of a POP behind its first one: tunnel to the counting origin, a certificate with an RSA key.
more_listeners() { # POP
    local early='tunnel_early_data = "allow"'
    printf '[[listen]]\n'
    printf '[[listen]]\naddress = "%s"\ncertificate = "certs/%s.pem"\nkey = "certs/%s.key"\ntunnel = "%s"\n%s\n' \
        "$(at "$1" "$counted")" pop pop counted "$early" "$(at "$1" "$rsa")" rsa rsa web "$early"
}

write_pop() { # POP, tickets section
    render_peer pop.toml id="pop-$1" core=0 address=127.0.0.1 pop_port="$(port "$1" "$web")" gateway_address=127.0.0.1 \
        gateway_port="${trunks#*:}" admin_port="$(port "$1" "$admin")" --merge "$(more_listeners "$1")" --merge "$2" \
        > "$work/pop-$1.toml"
}

start_pop() { # POP, tickets section
    write_pop "$1" "$2"
    "$trunkline" pop --config "$work/pop-$1.toml" --check > "$work/check-$1.log" 2>&1 || fail "the configuration of POP $1"
    "$trunkline" pop --config "$work/pop-$1.toml" 2>> "$work/pop-$1.log" & pids[pop-$1]=$!
    wait_for 10 "POP $1 is ready" is_ready "$(at "$1" "$admin")"
}

# Requests of MMTP go to the counting origin, and so does a second tunnel.
more_services() {
    printf '[[service]]\n[[service]]\nupstream = ["%s"]\n' "$counting_origin"
    printf '[[service]]\nname = "counted"\nkind = "tunnel"\nupstream = ["%s"]\n' "$counting_origin"
}

set_up() {
    "$trunkline" certs --out "$work/certs" --name localhost > /dev/null
    openssl req -x509 -newkey "rsa:$rsa_bits" -nodes -keyout "$work/certs/rsa.key" -out "$work/certs/rsa.pem" -days 90 \
        -subj /CN=localhost -addext subjectAltName=DNS:localhost 2> /dev/null
    mkdir --parents "$work/www"
    printf '%0281d' 0 > "$work/www/281"
    cp "$work/www/281" "$work/www/index.html"
    chmod 755 "$work"
    # The decoy takes connections and closes them: what a storm costs its own core, without the POP.
    render_peer nginx-origin.conf directory="$work" address=127.0.0.1 origin_port="${origin#*:}" \
        modules='load_module /usr/lib/nginx/modules/ngx_stream_module.so;' \
        more="stream { server { listen $decoy backlog=4096; return x; } }" > "$work/origin.conf"
    render_peer gateway.toml core="$second_core" address=127.0.0.1 gateway_port="${trunks#*:}" origin_address=127.0.0.1 \
        origin_port="${origin#*:}" admin_port="${gateway_admin#*:}" --merge "$(more_services)" > "$work/gateway.toml"
    "${elsewhere[@]}" nginx -c "$work/origin.conf" -p "$work" -e "$work/origin-error.log" 2>> "$work/origin.log" & pids[nginx]=$!
    "$trunkline" gateway --config "$work/gateway.toml" 2>> "$work/gateway.log" & pids[gateway]=$!
    wait_for 10 'the gateway is ready' is_ready "$gateway_admin"
}

# ---- point 1 ----

request_head() { printf 'GET /281 HTTP/1.1\r\nHost: localhost\r\n%s\r\n' "${1:-}"; }

s_client() { # what stands on standard input is the request; further arguments are openssl's
    timeout 20 openssl s_client -connect "localhost:$(port 1 "$web")" -servername localhost -CAfile "$work/certs/ca.pem" \
        -verify_return_error -tls1_3 -ign_eof "$@" 2>&1
}

said() { # point, wanted words, unwanted words, text
    local wrong=0
    grep --quiet --text "$2" "$work/said" || wrong=1
    [ -z "$3" ] || ! grep --quiet --text "$3" "$work/said" || wrong=1
    report "$1" "$wrong" "$4: $(grep --text --extended-regexp '^(New|Reused), |Early data was' "$work/said" | tr '\n' ' ')"
}

point_1_openssl() {
    local close=$'Connection: close\r\n'
    request_head "$close" | s_client -sess_out "$work/session" > "$work/said" || true
    said 1 '^New, TLSv1.3' '' 'openssl: first connection, tickets kept'
    cp "$work/session" "$work/session-copy"
    request_head "$close" | s_client -sess_in "$work/session-copy" > "$work/said" || true
    said 1 '^Reused, TLSv1.3' '' 'openssl: -sess_in'
    request_head "$close" | s_client -sess_in "$work/session-copy" > "$work/said" || true
    said 1 '^New, TLSv1.3' '^Reused' 'openssl: -sess_in, the same file again'

    request_head "$close" | s_client -sess_out "$work/session" > "$work/said" || true
    cp "$work/session" "$work/session-copy"
    request_head "$close" > "$work/early"
    # Standard input stays open for a moment: the request is in the early data alone.
    sleep 2 | s_client -sess_in "$work/session-copy" -early_data "$work/early" > "$work/said" || true
    said 1 'Early data was accepted' '' 'openssl: -early_data'
    local wrong=0
    grep --quiet --text 'HTTP/1.1 200' "$work/said" || wrong=1
    report 1 "$wrong" 'openssl: the early request is answered'
    sleep 2 | s_client -sess_in "$work/session-copy" -early_data "$work/early" > "$work/said" || true
    said 1 '^New, TLSv1.3' 'Early data was accepted\|HTTP/1.1 200' 'openssl: -early_data, the same file again'
}

point_1_curl() {
    local before after wrong=0 url
    url=https://localhost:$(port 1 "$web")/281
    before=$(fresh_figure 1 'trunkline_handshakes_total{kind="resumed"}')
    # Three connections of one process: each answer ends with its connection.
    curl --silent --show-error --verbose --cacert "$work/certs/ca.pem" --header 'Connection: close' "$url" "$url" "$url" \
        --output /dev/null --output /dev/null --output /dev/null 2> "$work/curl" || wrong=1
    after=$(fresh_figure 1 'trunkline_handshakes_total{kind="resumed"}')
    [ $((after - before)) -ge 1 ] || wrong=1
    report 1 "$wrong" "curl: $(curl --version | head -1 | cut -d ' ' -f 1,2,4): three connections in a row, $((after - before)) resumed ($(grep --count 're-\?using session' "$work/curl" || true) by its own account)"
}

point_1_rustls() {
    local kind wrong
    for kind in full resumed early; do
        wrong=0
        "$newcomers" "$kind" --target "$(at 1 "$web")" --ca "$work/certs/ca.pem" --connections 500 > "$work/json" || wrong=1
        report 1 "$wrong" "rustls: $kind: $(field kinds "$work/json"), errors $(field errors "$work/json")"
    done
}

point_1_testssl() {
    local wrong=0 severe target
    for target in web rsa; do
        # No name is looked up outside, and no list of clients simulated: protocols, ciphers, defaults, weaknesses.
        timeout 570 testssl --quiet --color 0 --warnings off --nodns none --ip 127.0.0.1 --add-ca "$work/certs/ca.pem" \
            --protocols --std --server-preference --fs --server-defaults --headers --vulnerable \
            --jsonfile "$work/testssl-$target.json" "localhost:$(port 1 "${!target}")" > "$work/testssl-$target" 2>&1 || true
        [ -z "${TESTSSL_OUT:-}" ] || cp "$work/testssl-$target" "$TESTSSL_OUT-$target"
        severe=$(python3 - "$work/testssl-$target.json" << 'PY'
import collections, json, sys
found = json.load(open(sys.argv[1]))
count = collections.Counter(entry["severity"] for entry in found)
print("by severity:", dict(count))
for entry in found:
    if entry["severity"] not in ("OK", "INFO"):
        print(f"          {entry['severity']:8} {entry['id']}: {entry['finding']}")
PY
) || { severe='no result'; wrong=1; }
        # What the certificate of a test lacks (a known authority, revocation, a name in DNS) is not the server's fault.
        ! grep --extended-regexp ' (MEDIUM|HIGH|CRITICAL|FATAL) ' <<< "$severe" \
            | grep --quiet --invert-match --extended-regexp 'cert_|DNS_CAArecord|OCSP|HSTS|security_headers|TLS1_2' || wrong=1
        report 1 "$wrong" "testssl.sh against $target, $severe"
    done
}

point_1() {
    start_pop 1 ''
    point_1_openssl
    point_1_curl
    point_1_rustls
    point_1_testssl
    stop pop-1
}

# ---- point 4 ----

redis_answers() { redis-cli -p "$redis_port" ping > /dev/null 2>&1; }

start_redis() {
    redis-server --port "$redis_port" --bind 127.0.0.1 --save '' --appendonly no --dir "$work" > "$work/redis.log" 2>&1 &
    pids[redis]=$!
    wait_for 10 'redis-server answers' redis_answers
}

# One user at a time, so that nothing but the handshake is timed.
returning() { # file, arguments...
    local file=$1
    shift
    "$newcomers" "$@" --target "$(at 1 "$web")" --target "$(at 2 "$web")" --ca "$work/certs/ca.pem" --threads 1 > "$file"
}

# Users get their tickets, then something happens, then they return.
returning_after() { # file, command...
    local file=$1 wrong=0
    shift
    rm --force "$work/go" && mkfifo "$work/go"
    returning "$file" resumed --users 400 --connections 350 --wait < "$work/go" & pids[client]=$!
    exec 8> "$work/go"
    wait_for 30 'users have their tickets' grep --quiet primed "$file"
    "$@"
    echo >&8
    exec 8>&-
    wait "${pids[client]}" || wrong=$?
    unset 'pids[client]'
    [ "$wrong" -le 1 ] # 1: some were full, which the caller judges
}

slower() { # file: by how many milliseconds its slowest is slower than the typical full handshake in quiet
    python3 -c 'import sys; print(round((int(sys.argv[1]) - int(sys.argv[2])) / 1000, 1))' \
        "$(field micros.max "$1")" "$(field micros.p50 "$work/quiet")"
}

point_4() {
    start_redis
    printf 'current = "%s"\n' "$(openssl rand -hex 32)" > "$work/ticket-keys.toml"
    chmod 600 "$work/ticket-keys.toml"
    local tickets wrong pop
    tickets=$(printf '[tickets]\nstore = "redis://127.0.0.1:%s/0"\nkeys = "ticket-keys.toml"' "$redis_port")
    for pop in 1 2; do start_pop "$pop" "$tickets"; done
    sleep 1 # the POPs find redis-server

    wrong=0
    returning "$work/json" resumed --users 400 --connections 5000 || wrong=1
    report 4 "$wrong" "returning users, either POP at random: $(field kinds "$work/json"), errors $(field errors "$work/json"); resumed at POP 1 $(fresh_figure 1 'trunkline_handshakes_total{kind="resumed"}'), at POP 2 $(figure 2 'trunkline_handshakes_total{kind="resumed"}')"
    returning "$work/quiet" full --connections 350 || fail 'full handshakes in quiet'

    point_4_without_redis 'stopped by SIGSTOP' kill -STOP "${pids[redis]}"
    kill -CONT "${pids[redis]}"
    sleep 3
    wrong=0
    returning "$work/json" resumed --users 100 --connections 500 || wrong=1
    report 4 "$wrong" "redis-server goes on: $(field kinds "$work/json"), errors $(field errors "$work/json")"
    point_4_without_redis 'killed' stop redis
    start_redis
    sleep 3
    wrong=0
    returning "$work/json" resumed --users 100 --connections 500 || wrong=1
    report 4 "$wrong" "redis-server is back, empty: $(field kinds "$work/json"), errors $(field errors "$work/json")"
    for pop in pop-1 pop-2 redis; do stop "$pop"; done
}

point_4_without_redis() { # text, command...
    local wrong=0 text=$1
    shift
    returning_after "$work/json" "$@" || wrong=1
    [ "$(field errors "$work/json")" -eq 0 ] && [ "$(field connections "$work/json")" -eq 350 ] || wrong=1
    holds "$(slower "$work/json") <= 30" || wrong=1
    report 4 "$wrong" "redis-server $text: $(field kinds "$work/json"), errors $(field errors "$work/json"), slowest $(slower "$work/json") ms slower than a full one before (p50 $(field micros.p50 "$work/json") us, p99 $(field micros.p99 "$work/json") us; full before: p50 $(field micros.p50 "$work/quiet") us, max $(field micros.max "$work/quiet") us)"
}

# ---- point 5 ----

replay() { # text, handshakes, arguments...
    local wrong=0 text=$1 count=$2
    shift 2
    "$newcomers" replay --origin "$counting_origin" --connections "$count" --ca "$work/certs/ca.pem" --threads 8 "$@" \
        > "$work/json" || wrong=1
    judge_replay "$wrong" "$text"
}

judge_replay() { # right or wrong so far, text
    local wrong=$1
    # Without early data nothing was tested.
    [ "$(field kinds.early "$work/json")" -gt 0 ] || wrong=1
    report 5 "$wrong" "$2: $(field handshakes "$work/json") handshakes $(field kinds "$work/json"), copies $(field copies_sent "$work/json"); at the origin never $(field arrived_never "$work/json"), once $(field arrived_once "$work/json"), twice $(field arrived_twice_or_more "$work/json"); asked again after refusal $(field asked_again_after_refusal "$work/json"), arrived $(field arrived_again "$work/json"); errors $(field errors "$work/json") $(field first_error "$work/json")"
}

point_5() {
    start_pop 1 ''
    replay 'tunnel, one POP' "$handshakes" --target "$(at 1 "$counted")"
    replay 'MMTP, one POP' $((handshakes / 5)) --target "$(at 1 "$web")" --alpn mmtp
    # A restart between the flights and their copies.
    rm --force "$work/go" && mkfifo "$work/go"
    local wrong=0
    "$newcomers" replay --origin "$counting_origin" --connections 3000 --ca "$work/certs/ca.pem" --target "$(at 1 "$counted")" \
        --after < "$work/go" > "$work/json" & pids[client]=$!
    exec 8> "$work/go"
    wait_for 120 'the flights are sent' grep --quiet waiting "$work/json"
    stop pop-1
    start_pop 1 ''
    echo >&8
    exec 8>&-
    wait "${pids[client]}" || wrong=1
    unset 'pids[client]'
    judge_replay "$wrong" 'tunnel, POP restarted in between'
    stop pop-1

    start_redis
    printf 'current = "%s"\n' "$(openssl rand -hex 32)" > "$work/ticket-keys.toml"
    chmod 600 "$work/ticket-keys.toml"
    local tickets pop
    tickets=$(printf '[tickets]\nstore = "redis://127.0.0.1:%s/0"\nkeys = "ticket-keys.toml"' "$redis_port")
    for pop in 1 2; do start_pop "$pop" "$tickets"; done
    sleep 1
    replay 'tunnel, two POPs that share redis-server' $((handshakes / 5)) --target "$(at 1 "$counted")" --target "$(at 2 "$counted")"
    for pop in pop-1 pop-2 redis; do stop "$pop"; done
}

# ---- point 6 ----

established() { # file, seconds
    "${elsewhere[@]}" wrk --threads 1 --connections 64 --duration "$2s" --latency "https://localhost:$(port 1 "$web")/281" > "$1"
}

wrk_rate() { awk '/^Requests\/sec/ { print $2 }' "$1"; }

# Requests per second without the first second, when there was no storm yet.
rate_in_storm() { # file of wrk, file of the quiet run
    python3 -c 'import sys; print(round((int(sys.argv[1]) - float(sys.argv[2])) / (float(sys.argv[3]) - 1), 1))' \
        "$(awk '/requests in/ { print $1 }' "$1")" "$(wrk_rate "$2")" "$storm_seconds"
}

wrk_p99() { # in microseconds
    awk '$1 == "99%" { value = $2 + 0; print value * ($2 ~ /us$/ ? 1 : $2 ~ /ms$/ ? 1e3 : 1e6) }' "$1"
}

storm() { # file, target, rate, seconds, further arguments
    "${elsewhere[@]}" "$newcomers" storm --target "$2" --ca "$work/certs/ca.pem" --rate "$3" --seconds "$4" "${@:5}" > "$1" || true
}

# The descriptors of one process allow so many connections at a time that a storm may wait this long for a flight.
storm_patience=0.7
storm_seconds=16

beside_storm() { # file of wrk, file of the storm, target, rate
    established "$1" "$storm_seconds" & pids[wrk]=$!
    sleep 1 # its connections stand
    storm "$2" "$3" "$4" $((storm_seconds - 1)) --patience "$storm_patience"
    wait "${pids[wrk]}" || true
    unset 'pids[wrk]'
    settle
}

has_no_clients() { [ "$(figure 1 trunkline_connections_open)" -eq 0 ]; }

settle() {
    sleep 0.5
    wait_for 60 'the POP is done with the storm' has_no_clients
}

ratio() { python3 -c 'import sys; print(round(float(sys.argv[1]) / max(float(sys.argv[2]), 0.001), 3))' "$1" "$2"; }

point_6() {
    start_pop 1 ''
    local listener key capacity rate wrong
    established "$work/wrk" 2 # warms up
    for listener in web rsa; do
        [ "$listener" = web ] && key='ECDSA P-256' || key="RSA $rsa_bits"
        # Few at a time: as many as the POP can do, and no heap of those it cannot.
        storm "$work/storm" "$(at 1 "${!listener}")" 30000 4 --outstanding 64
        capacity=$(field flights_per_s "$work/storm")
        report 6 0 "$key: capacity with nothing else to do: ${capacity%.*} handshakes/s"
        settle
        established "$work/quiet" 10
        rate=$(python3 -c "print(3 * $capacity)")
        # What the storm takes from core 1, where wrk, origin and gateway run, is not the POP's doing: the same storm
        # against something else on that core shows it.
        beside_storm "$work/control" "$work/storm-control" "$decoy" "$rate"
        beside_storm "$work/wrk" "$work/storm" "$(at 1 "${!listener}")" "$rate"
        judge_storm "$key"
    done
    stop pop-1
}

judge_storm() { # key
    local quiet control rate wrong=0
    quiet=$(wrk_rate "$work/quiet") control=$(rate_in_storm "$work/control" "$work/quiet") rate=$(rate_in_storm "$work/wrk" "$work/quiet")
    holds "$rate >= 0.8 * $quiet" || wrong=1
    holds "$(wrk_p99 "$work/wrk") < 5 * $(wrk_p99 "$work/quiet")" || wrong=1
    ! grep --quiet 'Socket errors\|Non-2xx' "$work/wrk" || wrong=1
    report 6 "$wrong" "$1: 64 established, requests/s: quiet $quiet, storm elsewhere $control, storm $rate (of quiet $(ratio "$rate" "$quiet"), of storm elsewhere $(ratio "$rate" "$control")); p99 us: $(wrk_p99 "$work/quiet"), $(wrk_p99 "$work/control"), $(wrk_p99 "$work/wrk") ($(ratio "$(wrk_p99 "$work/wrk")" "$(wrk_p99 "$work/quiet")") x quiet); $(grep 'Socket errors\|Non-2xx' "$work/wrk" || echo 'no errors')"
    report 6 0 "$1: the storm: $(python3 -c 'import json, sys; print({k: round(v) for k, v in json.load(open(sys.argv[1])).items() if isinstance(v, (int, float))})' "$work/storm")"
}

set_up
for point in "${points[@]}"; do
    "point_$point"
done
exit "$missed"
