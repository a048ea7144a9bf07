#!/usr/bin/env bash
# trunkline load beside wrk on the same nginx: requests per second, p50, p99, and the CPU each of them takes per request.
#
# Usage: scripts/bench/load-check.sh [seconds] [rounds]      default 3 3
#
# The two run in turns, so that drift hits both; medians are printed, with the smallest and largest, and of the share that load
# does of wrk's requests in the same round the median over rounds. nginx runs on core 0,
# the generators on core 1. TLS is TLS_AES_128_GCM_SHA256 for both, which is verified. Exit 1 when the two disagree on
# requests per second by more than LIMIT percent.
#
# Needs: nginx, wrk, openssl, two cores, a release build, or TRUNKLINE=binary. LIMIT=percent, default 25.
set -euo pipefail

seconds=${1:-3} rounds=${2:-3} limit=${LIMIT:-25}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
trunkline=${TRUNKLINE:-$root/target/release/trunkline}
[ -x "$trunkline" ] || { echo "no $trunkline: cargo build --release" >&2; exit 2; }
PATH=$PATH:/usr/sbin
for tool in nginx wrk taskset python3 openssl; do
    command -v "$tool" > /dev/null || { echo "$tool is missing: apt-get install nginx-light wrk util-linux python3 openssl" >&2; exit 2; }
done
[ "$(nproc)" -ge 2 ] || { echo "two cores are needed" >&2; exit 2; }

dir=$(mktemp --directory)
nginx_pid=
cleanup() {
    if [ -n "$nginx_pid" ]; then kill "$nginx_pid" 2> /dev/null || true; wait "$nginx_pid" 2> /dev/null || true; fi
    rm --recursive --force "$dir"
}
trap cleanup EXIT

read -r http https < <(python3 -c '
import socket
sockets = [socket.socket() for _ in range(2)]
for each in sockets: each.bind(("127.0.0.1", 0))
print(*(each.getsockname()[1] for each in sockets))')

"$trunkline" certs --out "$dir/certs" --name localhost > /dev/null
mkdir "$dir/www"
head --bytes 281 /dev/zero | tr '\0' x > "$dir/www/small"
cat > "$dir/nginx.conf" << CONF
daemon off; master_process off; pid $dir/pid; error_log $dir/error.log;
events { worker_connections 4096; }
http {
    access_log off; keepalive_requests 1000000000;
    client_body_temp_path $dir/1; proxy_temp_path $dir/2; fastcgi_temp_path $dir/3; uwsgi_temp_path $dir/4; scgi_temp_path $dir/5;
    server { listen 127.0.0.1:$http; root $dir/www; }
    server {
        listen 127.0.0.1:$https ssl; root $dir/www;
        ssl_certificate $dir/certs/pop.pem; ssl_certificate_key $dir/certs/pop.key; ssl_protocols TLSv1.3;
        # The server's choice: left to them, wrk puts AES-256 first and load AES-128.
        ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256; ssl_prefer_server_ciphers on;
    }
}
CONF
taskset --cpu-list 0 nginx -p "$dir" -c "$dir/nginx.conf" -e "$dir/error.log" & nginx_pid=$!
for _ in $(seq 100); do
    if (exec 3<> "/dev/tcp/127.0.0.1/$http") 2> /dev/null; then break; fi
    sleep 0.05
done
# What a client of OpenSSL gets, as wrk is one; with one suite on offer, load has it or no handshake.
suite=$(openssl s_client -connect "127.0.0.1:$https" -servername localhost -tls1_3 -brief < /dev/null 2>&1 |
    sed --quiet 's/^Ciphersuite: //p') || true
[ "$suite" = TLS_AES_128_GCM_SHA256 ] || { echo "nginx takes ${suite:-no suite}, not TLS_AES_128_GCM_SHA256" >&2; exit 2; }

# One run of each; lines of "what url connections generator requests_per_s p50 p99 cpu_per_request".
cat > "$dir/run.py" << 'PYTHON'
import json, re, resource, subprocess, sys
trunkline, ca, seconds, url, connections, generator = sys.argv[1:]
if generator == "load":
    command = [trunkline, "load", url, "--connections", connections, "--duration", seconds + "s", "--json", "-", "--quiet"]
    command += ["--ca", ca] if url.startswith("https") else []
else:
    command = ["wrk", "--threads", "1", "--connections", connections, "--duration", seconds + "s", "--latency", url]
output = subprocess.run(["taskset", "--cpu-list", "1"] + command, check=True, capture_output=True, text=True).stdout
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
cpu = usage.ru_utime + usage.ru_stime
if generator == "load":
    figures = json.loads(output)
    latency = figures["latency_micros"]
    requests, rate, p50, p99 = figures["requests"], figures["requests_per_s"], latency["p50"], latency["p99"]
else:
    unit = {"us": 1, "ms": 1e3, "s": 1e6}
    def percentile(name):
        number, of = re.search(name + r"%\s+([\d.]+)(us|ms|s)", output).groups()
        return float(number) * unit[of]
    requests = int(re.search(r"(\d+) requests in", output).group(1))
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", output).group(1))
    p50, p99 = percentile("50"), percentile("99")
print(f"{url.split(':')[0]} {connections} {generator} {rate:.0f} {p50:.0f} {p99:.0f} {cpu * 1e6 / requests:.2f}")
PYTHON

for _ in $(seq "$rounds"); do
    for connections in 16 64 256; do
        for url in "http://127.0.0.1:$http/small" "https://localhost:$https/small"; do
            for generator in wrk load; do
                python3 "$dir/run.py" "$trunkline" "$dir/certs/ca.pem" "$seconds" "$url" "$connections" "$generator"
            done
        done
    done
done > "$dir/results"

python3 - "$dir/results" "$limit" << 'PYTHON'
import collections, statistics, sys
rows, limit = collections.defaultdict(list), float(sys.argv[2])
for line in open(sys.argv[1]):
    scheme, connections, generator, *figures = line.split()
    rows[scheme, int(connections), generator].append([float(each) for each in figures])
print(f"{'':20} {'requests/s':>24} {'p50 us':>20} {'p99 us':>20} {'own CPU us/request':>22}")
agree = True
for (scheme, connections) in sorted({key[:2] for key in rows}):
    for generator in ("wrk", "load"):
        columns = list(zip(*rows[scheme, connections, generator]))
        cells = [f"{statistics.median(each):g} ({min(each):g}-{max(each):g})" for each in columns]
        print(f"{scheme:6} {connections:4} {generator:8} {cells[0]:>24} {cells[1]:>20} {cells[2]:>20} {cells[3]:>22}")
    # Of two turns of one round: between rounds the machine's speed may change.
    turns = zip(rows[scheme, connections, "wrk"], rows[scheme, connections, "load"])
    share = statistics.median(load[0] / wrk[0] for wrk, load in turns)
    agree &= abs(share - 1) * 100 <= limit
    print(f"{'':12}load does {share:.2f} of wrk's requests per second")
sys.exit(0 if agree else 1)
PYTHON
