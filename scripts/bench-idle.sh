#!/usr/bin/env bash
# Resident memory per idle connection that has done one request: a POP with tunnels, a POP with MMTP, Debian's nginx.
#
# A fresh process each, warmed up by 500 connections that come and go; then so many connections ask once and stay. The
# figure is what RssAnon (memory of the process's own) has grown by, over the connections; what the kernel keeps for
# sockets is not in it, and the same for all. Then every connection asks again, and all must answer.
#
# Usage: scripts/bench-idle.sh [connections] [seconds of rest]      default 15000 12
# Environment: TRUNKLINE, NEWCOMERS (paths of the binaries), SERVERS ("tunnel mmtp nginx"), BENCH_POP_CONFIG (TOML for the POP).
# Needs: nginx, a limit of open descriptors of 20 000 (ulimit -Hn), and release builds as bench-newcomers.sh does.
set -euo pipefail

connections=${1:-15000}
rest=${2:-12}
servers=${SERVERS:-tunnel mmtp nginx}
root=$(cd "$(dirname "$0")/.." && pwd)
trunkline=${TRUNKLINE:-$root/target/release/trunkline}
newcomers=${NEWCOMERS:-$root/target/release/examples/newcomers}
for binary in "$trunkline" "$newcomers"; do
    [ -x "$binary" ] || { echo "no $binary: cargo build --release && cargo build --release --example newcomers" >&2; exit 2; }
done
PATH=$PATH:/usr/sbin
command -v nginx > /dev/null || { echo "nginx is missing: apt-get install nginx" >&2; exit 2; }
ulimit -n "$(ulimit -Hn)"
[ "$(ulimit -n)" = unlimited ] || [ "$(ulimit -n)" -ge $((connections + 1000)) ] || {
    echo "$(ulimit -n) descriptors are too few for $connections connections" >&2; exit 2; }

dir=$(mktemp -d)
declare -A pids=()
stop() { # name
    [ -n "${pids[$1]:-}" ] || return 0
    kill "${pids[$1]}" 2> /dev/null || true
    wait "${pids[$1]}" 2> /dev/null || true
    unset "pids[$1]"
}
cleanup() {
    local name
    exec 9>&- || true
    for name in "${!pids[@]}"; do stop "$name"; done
    rm -rf "$dir"
}
trap cleanup EXIT

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
# One request each and then silence must not be too long for anybody: no timeout below an hour.
mkdir "$dir/www"
head -c 281 /dev/zero | tr '\0' x > "$dir/www/281"
"$trunkline" certs --out "$dir/certs" --name localhost > /dev/null
chmod 755 "$dir" "$dir/www"

# Tickets outlive connections, and their store has a size of its own: a small one, full after the warming up, keeps what
# grows there out of what a connection costs.
tickets='[tickets]
capacity = 1000'

start_all() {
    origin=$(free_port); pop=$(free_port); trunks=$(free_port); https=$(free_port)
    cat > "$dir/origin.conf" << CONF
daemon off; master_process off; pid $dir/origin.pid; error_log $dir/origin.log; worker_rlimit_nofile 20000;
events { worker_connections 19000; }
http {
    access_log off; keepalive_requests 1000000000; keepalive_timeout 1h;
    server { listen 127.0.0.1:$origin backlog=4096; root $dir/www; }
}
CONF
    cat > "$dir/proxy.conf" << CONF
daemon off; master_process off; pid $dir/proxy.pid; error_log $dir/proxy.log; worker_rlimit_nofile 20000;
events { worker_connections 19000; }
http {
    access_log off; keepalive_timeout 1h;
    upstream origin { server 127.0.0.1:$origin; keepalive 512; keepalive_requests 1000000000; }
    server {
        listen 127.0.0.1:$https ssl backlog=4096;
        ssl_certificate $dir/certs/pop.pem; ssl_certificate_key $dir/certs/pop.key; ssl_protocols TLSv1.3;
        ssl_session_cache shared:tls:50m; ssl_session_timeout 1d; ssl_early_data on; ssl_buffer_size 4k;
        location / { proxy_pass http://origin; proxy_http_version 1.1; proxy_set_header Connection ""; }
    }
}
CONF
    cat > "$dir/pop.toml" << CONF
id = "idle"
cores = [0]
[[listen]]
address = "127.0.0.1:$pop"
certificate = "certs/pop.pem"
key = "certs/pop.key"
tunnel = "web"
[worker]
clients_max = $((connections + 500))
idle_timeout = "1h"
[backbone]
ca = "certs/ca.pem"
certificate = "certs/pop.pem"
key = "certs/pop.key"
trunks_per_core = 2
[[backbone.gateway]]
name = "dc"
address = "127.0.0.1:$trunks"
$tickets
${BENCH_POP_CONFIG:-}
CONF
    cat > "$dir/gateway.toml" << CONF
id = "idle-dc"
cores = [$(($(nproc) > 1 ? 1 : 0))]
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
[upstream]
connections_max = $((connections + 500))
CONF
    if [ -n "$tickets" ] && ! "$trunkline" pop --config "$dir/pop.toml" --check > /dev/null 2>&1; then
        echo "this binary knows no [tickets]: without"
        tickets=''
        start_all
        return
    fi
    nginx -c "$dir/origin.conf" -p "$dir" & pids[origin]=$!
    nginx -c "$dir/proxy.conf" -p "$dir" & pids[nginx]=$!
    "$trunkline" gateway --config "$dir/gateway.toml" > "$dir/gateway.log" 2>&1 & pids[gateway]=$!
    "$trunkline" pop --config "$dir/pop.toml" > "$dir/pop.log" 2>&1 & pids[pop]=$!
    sleep 1.5
}

rss_kib() { awk '/^RssAnon/ { print $2 }' "/proc/$1/status"; }

measure() { # name process port alpn
    local before idle woken pid=${pids[$2]}
    "$newcomers" full --target "127.0.0.1:$3" --ca "$dir/certs/ca.pem" --alpn "$4" --connections 500 > /dev/null
    sleep "$rest"
    before=$(rss_kib "$pid")
    rm -f "$dir/go" && mkfifo "$dir/go"
    "$newcomers" hold --target "127.0.0.1:$3" --ca "$dir/certs/ca.pem" --alpn "$4" --connections "$connections" \
        < "$dir/go" > "$dir/hold.json" & pids[client]=$!
    exec 9> "$dir/go"
    until grep --quiet '"held"' "$dir/hold.json"; do
        kill -0 "${pids[client]}" || { echo "$1: the client has ended" >&2; tail -3 "$dir"/*.log >&2; return 1; }
        sleep 0.2
    done
    sleep "$rest"
    idle=$(rss_kib "$pid")
    echo >&9
    exec 9>&-
    local wrong=0
    wait "${pids[client]}" || wrong=1
    unset 'pids[client]'
    woken=$(rss_kib "$pid")
    python3 - "$1" "$before" "$idle" "$woken" "$dir/hold.json" "$wrong" << 'PY'
import json, sys
name, before, idle, woken, path, wrong = sys.argv[1:]
held, awake = (json.loads(line) for line in open(path))
each = (int(idle) - int(before)) * 1024 / max(held["connections"], 1)
print(f"{name:8} {held['connections']:11} {before:>11} {idle:>10} {each:15.0f} {awake['connections']:7} {awake['errors']:7}"
      f" {awake['micros']['p99'] or 0:12} {woken:>11}", "" if wrong == "0" else f"  FAILED: {held['first_error']} {awake['first_error']}")
PY
    [ "$wrong" -eq 0 ] || tail -n 4 "$dir"/*.log >&2
    return "$wrong"
}

echo "$connections connections, measured after ${rest} s of rest; $(uname -sr), $(nginx -v 2>&1), $("$trunkline" --version)"
echo "server   connections  before KiB   idle KiB  bytes each one   woken  errors  wake p99 us   woken KiB"
missed=0
for server in $servers; do
    start_all
    case $server in
        tunnel) measure tunnel pop "$pop" none || missed=1 ;;
        mmtp) measure mmtp pop "$pop" mmtp || missed=1 ;;
        nginx) measure nginx nginx "$https" none || missed=1 ;;
    esac
    for name in pop gateway nginx origin; do stop "$name"; done
done
exit "$missed"
