#!/usr/bin/env bash
# Restores what apply.sh recorded. What somebody else has changed since is told and left, unless --force.
set -euo pipefail
# shellcheck source=lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    cat <<'TEXT'
usage: revert.sh [--dry-run] [--force] [--state DIR]
  --dry-run    say what would be restored
  --force      restore also what somebody else has changed since
  --state DIR  the record; default /var/lib/trunkline/tuning
Exit code 0: all is as before, or nothing was recorded; 1: something was left, and stays in the record; 2: a wrong command line.
TEXT
}

dry_run='' force='' restored_count=0 same_count=0
left=()

leave() {
    say left "$2: $3"
    left+=("$1"$'\t'"$2")
}

revert_item() {
    local kind=$1 name=$2 was is
    was=${before[$kind:$name]}
    if item_gone "$kind" "$name"; then
        say note "$name: is no longer there, and what was set of it went with it"
        same_count=$((same_count + 1))
        return
    fi
    if ! item_read "$kind" "$name"; then
        leave "$kind" "$name" "$reason"
        return
    fi
    is=$reading
    if [[ $is == "$was" ]]; then
        same_count=$((same_count + 1))
        return
    fi
    # Without `after`, apply.sh was killed between recording and reading: the value is taken as ours.
    if [[ -n ${after[$kind:$name]+set} && $is != "${after[$kind:$name]}" && -z $force ]]; then
        leave "$kind" "$name" "somebody changed it to $is since (before: $was; --force restores that)"
        return
    fi
    if [[ -n $dry_run ]]; then
        say would "$name: $is -> $was"
        return
    fi
    if ! item_write "$kind" "$name" "$was"; then
        # A module that connections use is nothing anybody must come back for.
        [[ $kind != module ]] || { say note "module $name: $reason" && return; }
        leave "$kind" "$name" "$reason"
        return
    fi
    item_read "$kind" "$name" || reading=''
    if [[ $reading != "$was" ]]; then
        leave "$kind" "$name" "the kernel took $was and says $reading"
        return
    fi
    say back "$name: $is -> $was"
    restored_count=$((restored_count + 1))
}

# Last applied, first restored; but queueing disciplines after the default that the kernel takes for them.
revert_all() {
    local i kind name pass
    for pass in others qdisc; do
        for ((i = ${#order[@]} - 1; i >= 0; i--)); do
            IFS=$'\t' read -r kind name <<<"${order[i]}"
            [[ $kind == qdisc ]] && [[ $pass == others ]] && continue
            [[ $kind != qdisc ]] && [[ $pass == qdisc ]] && continue
            revert_item "$kind" "$name"
        done
    done
    # Restoring the default congestion control may have put it among the allowed ones again.
    name=net.ipv4.tcp_allowed_congestion_control
    if [[ -z $dry_run && -n ${before[sysctl:$name]+set} ]] && item_read sysctl "$name" && [[ $reading != "${before[sysctl:$name]}" ]]; then
        item_write sysctl "$name" "${before[sysctl:$name]}" || leave sysctl "$name" "$reason"
    fi
}

# Keeps only what was left, so that a second run looks at nothing else.
record_shrink() {
    local item kind name
    if ((${#left[@]} == 0)); then
        rm --force "$state_dir/record" "$state_dir/lock"
        rmdir --ignore-fail-on-non-empty "$state_dir"
        return
    fi
    printf 'boot\t%s\nnetns\t%s\n' "$(boot_id)" "$(netns_id)" >"$state_dir/record.new"
    for item in "${left[@]}"; do
        IFS=$'\t' read -r kind name <<<"$item"
        printf 'before\t%s\t%s\t%s\n' "$kind" "$name" "${before[$kind:$name]}" >>"$state_dir/record.new"
        [[ -z ${after[$kind:$name]+set} ]] || printf 'after\t%s\t%s\t%s\n' "$kind" "$name" "${after[$kind:$name]}" >>"$state_dir/record.new"
    done
    mv --force "$state_dir/record.new" "$state_dir/record"
}

while (($#)); do
    case $1 in
    --help | -h) usage && exit 0 ;;
    --dry-run) dry_run=1 ;;
    --force) force=1 ;;
    --state) argument "$@" && state_dir=$2 && shift ;;
    *) usage >&2 && die "$1: unknown" ;;
    esac
    shift
done
# A dry run writes nothing, and anybody may look.
[[ -n $dry_run ]] || record_guard
if [[ ! -e $state_dir/record ]]; then
    printf 'nothing is recorded in %s: nothing to restore\n' "$state_dir"
    exit 0
fi
[[ -n $dry_run || $(id --user) == 0 ]] || die 'only root may change these settings' 'sudo, or look with --dry-run'
if [[ -z $dry_run ]]; then
    exec 9>"$state_dir/lock"
    flock --nonblock 9 || die "$state_dir: another apply.sh or revert.sh is at work" 'wait for its end'
fi
if ! record_read; then
    printf 'the record in %s is of an earlier boot, and nothing of that is in force: nothing to restore\n' "$state_dir"
    [[ -n $dry_run ]] || record_shrink
    exit 0
fi
revert_all
[[ -n $dry_run ]] || record_shrink
printf '%s restored, %s were as before, %s left\n' "$restored_count" "$same_count" "${#left[@]}"
((${#left[@]} == 0)) || exit 1
