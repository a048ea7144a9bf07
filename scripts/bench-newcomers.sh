#!/usr/bin/env bash
# CPU per new connection of a POP beside Debian's nginx, in one run: connect, handshake, one request of 281 bytes, close.
# Same client, same origin, same certificate (ECDSA P-256), X25519 alone; full, resumed, and with early data.
#
# The server under measurement alone on core 0; client, origin and (for the POP) the gateway on core 1. The figure is user
# plus system time of the server's process over the connections that the client counted, each of which it has checked to be
# of the kind wanted. Servers take turns, and the ratios are of medians: absolute times drift on shared machines.
#
# Usage: scripts/bench-newcomers.sh [seconds] [rounds]      default 5 5
# Environment: TRUNKLINE, NEWCOMERS (paths of the binaries), KINDS ("full resumed early"), BENCH_MMTP=1 (the POP's MMTP beside
# its tunnel), BENCH_POP_CONFIG (more TOML for the POP), BENCH_KEEP=DIR (keeps every line of JSON
# there), BENCH_PROFILE=1 (a profile of the POP per kind, with perf).
# Needs: nginx, two cores, release builds: cargo build --release && cargo build --release --example newcomers
set -euo pipefail

seconds=${1:-5}
rounds=${2:-5}
kinds=${KINDS:-full resumed early}
root=$(cd "$(dirname "$0")/.." && pwd)
trunkline=${TRUNKLINE:-$root/target/release/trunkline}
newcomers=${NEWCOMERS:-$root/target/release/examples/newcomers}
for binary in "$trunkline" "$newcomers"; do
    [ -x "$binary" ] || { echo "no $binary: cargo build --release && cargo build --release --example newcomers" >&2; exit 2; }
done
PATH=$PATH:/usr/sbin
for tool in nginx taskset python3; do
    command -v "$tool" > /dev/null || { echo "$tool is missing: apt-get install nginx util-linux python3" >&2; exit 2; }
done

dir=$(mktemp -d)
pids=()
cleanup() {
    for pid in "${pids[@]}"; do kill "$pid" 2> /dev/null || true; done
    for file in origin proxy; do [ -f "$dir/$file.pid" ] && kill "$(cat "$dir/$file.pid")" 2> /dev/null || true; done
    [ -z "${BENCH_KEEP:-}" ] || { mkdir -p "$BENCH_KEEP" && cp "$dir"/figures "$dir"/*.log "$BENCH_KEEP"/; }
    rm -rf "$dir"
}
trap cleanup EXIT

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
origin=$(free_port); pop=$(free_port); trunks=$(free_port); https=$(free_port)

mkdir "$dir/www"
head -c 281 /dev/zero | tr '\0' x > "$dir/www/281"
"$trunkline" certs --out "$dir/certs" --name localhost > /dev/null

cat > "$dir/origin.conf" << CONF
worker_processes 1; worker_cpu_affinity 10; pid $dir/origin.pid; error_log $dir/origin.log;
events { worker_connections 8192; }
http { access_log off; keepalive_requests 1000000000; server { listen 127.0.0.1:$origin reuseport backlog=4096; root $dir/www; } }
CONF
# As an administrator who reads the manual would have it: sessions shared and kept, tickets, early data, a pool of
# connections to the origin.
cat > "$dir/proxy.conf" << CONF
worker_processes 1; worker_cpu_affinity 01; pid $dir/proxy.pid; error_log $dir/proxy.log;
events { worker_connections 8192; }
http {
    access_log off;
    upstream origin { server 127.0.0.1:$origin; keepalive 512; keepalive_requests 1000000000; }
    server {
        listen 127.0.0.1:$https ssl reuseport backlog=4096;
        ssl_certificate $dir/certs/pop.pem; ssl_certificate_key $dir/certs/pop.key;
        ssl_protocols TLSv1.3; ssl_ecdh_curve X25519:prime256v1; ssl_buffer_size 4k;
        ssl_session_cache shared:tls:50m; ssl_session_timeout 1d; ssl_session_tickets on; ssl_early_data on;
        location / {
            proxy_pass http://origin; proxy_http_version 1.1;
            proxy_set_header Connection ""; proxy_set_header Early-Data \$ssl_early_data;
        }
    }
}
CONF
cat > "$dir/pop.toml" << CONF
id = "bench"
cores = [0]
[[listen]]
address = "127.0.0.1:$pop"
certificate = "certs/pop.pem"
key = "certs/pop.key"
tunnel = "web"
tunnel_early_data = "allow"
[backbone]
ca = "certs/ca.pem"
certificate = "certs/pop.pem"
key = "certs/pop.key"
trunks_per_core = 2
[[backbone.gateway]]
name = "dc"
address = "127.0.0.1:$trunks"
${BENCH_POP_CONFIG:-}
CONF
cat > "$dir/gateway.toml" << CONF
id = "bench-dc"
cores = [1]
[listen]
address = "127.0.0.1:$trunks"
certificate = "certs/gateway.pem"
key = "certs/gateway.key"
client_ca = "certs/ca.pem"
[[service]]
name = "web"
kind = "tunnel"
upstream = ["127.0.0.1:$origin"]
[[service]]
name = "pay"
kind = "http"
upstream = ["127.0.0.1:$origin"]
CONF
# Worker processes of nginx run as another user: let them in.
chmod 755 "$dir" "$dir/www"
"$trunkline" pop --config "$dir/pop.toml" --check > "$dir/check.log" 2>&1 || { cat "$dir/check.log" >&2; exit 2; }

nginx -c "$dir/origin.conf" -p "$dir"
nginx -c "$dir/proxy.conf" -p "$dir"
"$trunkline" gateway --config "$dir/gateway.toml" > "$dir/gateway.log" 2>&1 & pids+=($!)
"$trunkline" pop --config "$dir/pop.toml" > "$dir/pop.log" 2>&1 & pop_pid=$!; pids+=($!)
sleep 1.5
nginx_pid=$(pgrep -P "$(cat "$dir/proxy.pid")" | head -1)

measure() { # server kind pid port alpn
    # Exit 1 says that some connections were of another kind or failed: the table shows it.
    taskset -c 1 "$newcomers" "$2" --label "$1" --target "127.0.0.1:$4" --ca "$dir/certs/ca.pem" --alpn "$5" \
        --seconds "$seconds" --pid "$3" >> "$dir/figures" || [ $? -eq 1 ]
}
echo "$seconds s each, $rounds rounds; $(uname -sr), $(nginx -v 2>&1), $("$trunkline" --version), certificate ECDSA P-256"
for _ in $(seq "$rounds"); do
    for kind in $kinds; do
        measure pop "$kind" "$pop_pid" "$pop" none
        [ -z "${BENCH_MMTP:-}" ] || measure pop-mmtp "$kind" "$pop_pid" "$pop" mmtp
        measure nginx "$kind" "$nginx_pid" "$https" none
    done
done
# Where the POP's time goes, by itself: perf costs time as well.
profile() { # kind
    "$newcomers" "$1" --target "127.0.0.1:$pop" --ca "$dir/certs/ca.pem" --seconds 4 > "$dir/profiled" & local client=$!
    sleep 0.5
    perf record --quiet --freq 1999 --pid "$pop_pid" --output "$dir/perf.data" -- sleep 3 > /dev/null 2>&1 || true
    wait "$client" || true
    echo "profile of the POP, $1:"
    perf report --input "$dir/perf.data" --stdio --sort dso,symbol --percent-limit 0.7 2> /dev/null | grep --extended-regexp '^ +[0-9]' | head -40
}
if [ -n "${BENCH_PROFILE:-}" ]; then
    for kind in $kinds; do profile "$kind"; done
fi
python3 - "$dir/figures" << 'PY'
import collections, json, statistics, sys
TARGETS = {"full": 0.35, "resumed": 0.35, "early": 0.40}
figures = collections.defaultdict(list)
for line in open(sys.argv[1]):
    figure = json.loads(line)
    figures[figure["kind"], figure["label"]].append(figure)
print(f"{'kind':8} {'server':9} {'us/connection':>13} {'min':>8} {'max':>8} {'per s':>7} {'p50 us':>7} {'p99 us':>7}  kinds")
medians = {}
wrong = False
for (kind, server), rounds in figures.items():
    cpu = [figure["server_cpu_micros"] for figure in rounds]
    kinds = collections.Counter()
    for figure in rounds:
        kinds.update(figure["kinds"])
        if figure["errors"]:
            wrong = True
            print(f"{kind} {server}: {figure['errors']} errors, first: {figure['first_error']}")
    wrong |= set(kinds) != {kind}
    medians[kind, server] = statistics.median(cpu)
    def median_of(pick):
        return statistics.median(pick(figure) or 0 for figure in rounds)
    print(f"{kind:8} {server:9} {medians[kind, server]:13.1f} {min(cpu):8.1f} {max(cpu):8.1f}"
          f" {median_of(lambda f: f['connections_per_s']):7.0f} {median_of(lambda f: f['micros']['p50']):7.0f}"
          f" {median_of(lambda f: f['micros']['p99']):7.0f}  {dict(kinds)}")
for (kind, server), median in medians.items():
    if server != "nginx":
        ratio = median / medians[kind, "nginx"]
        print(f"{kind:8} {server:9} / nginx  {ratio:.3f}   (target at most {TARGETS[kind]:.2f}: {'ok' if ratio <= TARGETS[kind] else 'MISSED'})")
if wrong:
    print("NOT PURE: some connections failed or were of another kind, see above")
sys.exit(wrong)
PY
