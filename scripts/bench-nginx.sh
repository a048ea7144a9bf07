#!/usr/bin/env bash
# CPU per request of a POP beside Debian's nginx, in one run: same client, same origin, same certificate.
#
# The proxy under measurement alone on core 0; wrk, the origin and (for the POP) the gateway on core 1. The figure is user
# plus system time of the proxy's process over the requests that wrk counted. The three proxies take turns, and the ratios
# are of medians: absolute times drift on shared machines.
#
# Usage: scripts/bench-nginx.sh [connections] [seconds] [rounds]      default 64 8 5
# Needs: nginx, libnginx-mod-stream, wrk, two cores, a release build (or TRUNKLINE=path).
set -euo pipefail

connections=${1:-64}
seconds=${2:-8}
rounds=${3:-5}
root=$(cd "$(dirname "$0")/.." && pwd)
trunkline=${TRUNKLINE:-$root/target/release/trunkline}
[ -x "$trunkline" ] || { echo "no $trunkline: cargo build --release first, or set TRUNKLINE" >&2; exit 2; }
for tool in nginx wrk taskset python3; do
    command -v "$tool" >/dev/null || { echo "$tool is missing: apt-get install nginx libnginx-mod-stream wrk util-linux python3" >&2; exit 2; }
done

dir=$(mktemp -d)
pids=()
cleanup() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    for file in origin proxy; do [ -f "$dir/$file.pid" ] && kill "$(cat "$dir/$file.pid")" 2>/dev/null || true; done
    rm -rf "$dir"
}
trap cleanup EXIT

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
origin=$(free_port); pop=$(free_port); trunks=$(free_port); stream=$(free_port); https=$(free_port)

mkdir "$dir/www"
head -c 281 /dev/zero | tr '\0' x > "$dir/www/index.html"
"$trunkline" certs --out "$dir/certs" --name localhost > /dev/null
modules=""
[ -f /usr/lib/nginx/modules/ngx_stream_module.so ] && modules="load_module /usr/lib/nginx/modules/ngx_stream_module.so;"

cat > "$dir/origin.conf" <<CONF
worker_processes 1; worker_cpu_affinity 10; pid $dir/origin.pid; error_log $dir/origin.log;
events { worker_connections 4096; }
http { access_log off; keepalive_requests 1000000000; server { listen 127.0.0.1:$origin reuseport backlog=4096; root $dir/www; } }
CONF
cat > "$dir/proxy.conf" <<CONF
$modules
worker_processes 1; worker_cpu_affinity 01; pid $dir/proxy.pid; error_log $dir/proxy.log;
events { worker_connections 4096; }
http {
    access_log off;
    upstream origin { server 127.0.0.1:$origin; keepalive 512; keepalive_requests 1000000000; }
    server {
        listen 127.0.0.1:$https ssl reuseport backlog=4096; keepalive_requests 1000000000;
        ssl_certificate $dir/certs/pop.pem; ssl_certificate_key $dir/certs/pop.key; ssl_protocols TLSv1.3;
        location / { proxy_pass http://origin; proxy_http_version 1.1; proxy_set_header Connection ""; }
    }
}
stream {
    server {
        listen 127.0.0.1:$stream ssl reuseport backlog=4096; tcp_nodelay on; proxy_pass 127.0.0.1:$origin;
        ssl_certificate $dir/certs/pop.pem; ssl_certificate_key $dir/certs/pop.key; ssl_protocols TLSv1.3;
    }
}
CONF
cat > "$dir/pop.toml" <<CONF
id = "bench"
cores = [0]
[[listen]]
address = "127.0.0.1:$pop"
certificate = "certs/pop.pem"
key = "certs/pop.key"
tunnel = "web"
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
cat > "$dir/gateway.toml" <<CONF
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
CONF
# Worker processes of nginx run as another user: let them in.
chmod 755 "$dir" "$dir/www"

nginx -c "$dir/origin.conf" -p "$dir"
nginx -c "$dir/proxy.conf" -p "$dir"
"$trunkline" gateway --config "$dir/gateway.toml" > "$dir/gateway.log" 2>&1 & pids+=($!)
"$trunkline" pop --config "$dir/pop.toml" > "$dir/pop.log" 2>&1 & pop_pid=$!; pids+=($!)
sleep 1.5
nginx_pid=$(pgrep -P "$(cat "$dir/proxy.pid")" | head -1)

ticks() { awk '{ print $14 + $15 }' "/proc/$1/stat"; }
hertz=$(getconf CLK_TCK)
measure() { # name pid port
    local before after requests
    before=$(ticks "$2")
    requests=$(taskset -c 1 wrk -t1 -c"$connections" -d"${seconds}s" "https://127.0.0.1:$3/" | tee -a "$dir/wrk.log" | awk '/requests in/ { print $1 }')
    after=$(ticks "$2")
    awk -v name="$1" -v ticks="$((after - before))" -v hertz="$hertz" -v requests="$requests" -v seconds="$seconds" \
        'BEGIN { printf "%s %.2f %d\n", name, ticks / hertz * 1e6 / requests, requests / seconds }' | tee -a "$dir/figures"
}
echo "connections $connections, $seconds s each, $rounds rounds; $(uname -sr), $(nginx -v 2>&1), $("$trunkline" --version)"
echo "proxy  us_per_request  requests_per_s"
for _ in $(seq "$rounds"); do
    measure pop "$pop_pid" "$pop"
    measure nginx-stream "$nginx_pid" "$stream"
    measure nginx-https "$nginx_pid" "$https"
done
python3 - "$dir/figures" <<'PY'
import collections, statistics, sys
figures = collections.defaultdict(list)
for line in open(sys.argv[1]):
    name, micros, _ = line.split()
    figures[name].append(float(micros))
for name, values in figures.items():
    print(f"{name:13} median {statistics.median(values):6.2f} us/request   min {min(values):6.2f}   max {max(values):6.2f}")
pop = statistics.median(figures["pop"])
for other, target in (("nginx-stream", 0.70), ("nginx-https", 0.50)):
    print(f"pop / {other:13} {pop / statistics.median(figures[other]):.3f}   (target at 64 connections: at most {target:.2f})")
PY
grep -h "Socket errors\|Non-2xx" "$dir/wrk.log" || echo "no errors"
