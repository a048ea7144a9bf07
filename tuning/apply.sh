#!/usr/bin/env bash
# Applies a tuning profile to this machine, and records first what was before, so that revert.sh can restore it.
set -euo pipefail
# shellcheck source=lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    cat <<'TEXT'
usage: apply.sh pop|gateway [--dry-run] [--with OPTION]... [--only net] [--state DIR] [--devices A,B] [--cores 0,1] [--conf FILE]
  --dry-run    say what would change; change nothing, record nothing
  --with       an option of the profile, by key (net.ipv4.tcp_mem or tcp_mem), or mss-clamp[=BYTES], qdisc, channels, rings, coalesce
  --only net   only what belongs to this network namespace: net.*, the MSS clamp, queues; not memory, files, interrupts
  --state DIR  where the state before is recorded; default /var/lib/trunkline/tuning
  --devices, --cores  for queues and interrupts, see nic.sh
  --conf FILE  another profile than tuning/sysctl.d/60-trunkline-ROLE.conf
What this machine cannot do is said and counted; it is no failure. Exit code 0: done; 2: not begun, or a wrong command line.
TEXT
}

dry_run='' set_count=0 kept_count=0 skipped_count=0
companions=()

skip() {
    say cannot "$1: $2"
    skipped_count=$((skipped_count + 1))
}

# What else a setting changes, and is therefore part of what was before: the default congestion control becomes one of the allowed
# ones, and the kernel may load a module for it.
companions_record() {
    local item kind name
    companions=()
    case $1 in
    net.ipv4.tcp_congestion_control) companions=("module:tcp_$2" sysctl:net.ipv4.tcp_allowed_congestion_control) ;;
    net.core.default_qdisc) companions=("module:sch_$2") ;;
    esac
    for item in "${companions[@]}"; do
        kind=${item%%:*} name=${item#*:}
        if [[ -z ${before[$item]+set} ]] && item_read "$kind" "$name"; then
            record_add before "$kind" "$name" "$reading"
            before[$item]=$reading
        fi
    done
}

companions_finish() {
    local item
    for item in "${companions[@]}"; do
        ! item_read "${item%%:*}" "${item#*:}" || record_add after "${item%%:*}" "${item#*:}" "$reading"
    done
}

apply_item() {
    local kind=$1 name=$2 asked=$3 rule=$4 is want reason_harm reason_write
    item_read "$kind" "$name" || { skip "$name" "$reason" && return; }
    is=$reading
    want=$(target "$kind" "$asked" "$is" "$rule")
    if [[ $(normal "$kind" "$is") == "$(normal "$kind" "$want")" ]]; then
        [[ $rule == exactly || $want == "$asked" ]] || say kept "$name: $want is more than $asked"
        kept_count=$((kept_count + 1))
        return
    fi
    if [[ $kind == nft && $is != absent && -z ${before[nft:$name]+set} ]]; then
        skip "$name" 'somebody else has made a table of that name'
        return
    fi
    reason_harm=$(harm "$name" "$want")
    [[ -z $reason_harm ]] || { skip "$name" "$reason_harm" && return; }
    if [[ -n $dry_run ]]; then
        say would "$name: $(normal "$kind" "$is") -> $want"
        set_count=$((set_count + 1))
        return
    fi
    companions_record "$name" "$want"
    reading=$is
    [[ -n ${before[$kind:$name]+set} ]] || record_add before "$kind" "$name" "$is"
    before[$kind:$name]=${before[$kind:$name]-$is}
    if ! item_write "$kind" "$name" "$want"; then
        reason_write=$reason
        companions_finish
        skip "$name" "$reason_write"
        return
    fi
    companions_finish
    item_read "$kind" "$name" || reading=$want
    record_add after "$kind" "$name" "$reading"
    if [[ $reading == "$is" ]]; then
        skip "$name" "$want was taken and changed nothing: it is still $is"
        return
    fi
    say set "$name: $(normal "$kind" "$is") -> $(normal "$kind" "$reading")"
    set_count=$((set_count + 1))
}

while (($#)); do
    case $1 in
    --help | -h) usage && exit 0 ;;
    --dry-run) dry_run=1 && shift && continue ;;
    esac
    option_common "$@" || { usage >&2 && die "$1: unknown"; }
    shift "$taken"
done
[[ -n $role ]] || { usage >&2 && exit 2; }
items_collect
if [[ -z $dry_run ]]; then
    [[ $(id --user) == 0 ]] || die 'only root may change these settings' 'sudo, or look with --dry-run'
    record_begin
fi
for line in "${items[@]}"; do
    IFS=$'\t' read -r kind name asked rule <<<"$line"
    apply_item "$kind" "$name" "$asked" "$rule"
done
if [[ -n $dry_run ]]; then
    printf '%s would change, %s are so already, %s cannot apply here; nothing was changed\n' "$set_count" "$kept_count" "$skipped_count"
else
    printf '%s changed, %s were so already, %s cannot apply here; what was before is in %s\n' "$set_count" "$kept_count" "$skipped_count" "$state_dir"
fi
