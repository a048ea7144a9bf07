#!/usr/bin/env bash
# Shows each item of a profile: what is asked for, what is, and whether that is right. Changes nothing and needs no root.
set -euo pipefail
# shellcheck source=lib.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    cat <<'TEXT'
usage: check.sh pop|gateway [--with OPTION]... [--only net] [--devices A,B] [--cores 0,1] [--conf FILE]
The options are those of apply.sh. Exit code 0: all that can be is as asked; 1: something differs; 2: a wrong command line.
TEXT
}

ok_count=0 differs_count=0 absent_count=0

check_item() {
    local kind=$1 name=$2 asked=$3 rule=$4 word=$3 want is=''
    [[ $rule == exactly ]] || word="$asked or more"
    if item_read "$kind" "$name"; then
        is=$(normal "$kind" "$reading")
        want=$(target "$kind" "$asked" "$reading" "$rule")
        if [[ $is == "$(normal "$kind" "$want")" ]]; then
            printf '%-8s %-52s %-26s %s\n' ok "$name" "$word" "$is"
            ok_count=$((ok_count + 1))
            return
        fi
        # What apply.sh leaves for a good reason does not differ.
        reason=$(lacks "$name" "$asked")
        [[ -n $reason ]] || reason=$(harm "$name" "$want")
    fi
    if [[ -n $reason ]]; then
        printf '%-8s %-52s %-26s %s\n' n/a "$name" "$word" "${is:+$is: }$reason"
        absent_count=$((absent_count + 1))
    else
        printf '%-8s %-52s %-26s %s\n' differs "$name" "$word" "$is"
        differs_count=$((differs_count + 1))
    fi
}

while (($#)); do
    case $1 in --help | -h) usage && exit 0 ;; esac
    option_common "$@" || { usage >&2 && die "$1: unknown"; }
    shift "$taken"
done
[[ -n $role ]] || { usage >&2 && exit 2; }
items_collect
printf '%-8s %-52s %-26s %s\n' '' item asked is
for line in "${items[@]}"; do
    IFS=$'\t' read -r kind name asked rule <<<"$line"
    check_item "$kind" "$name" "$asked" "$rule"
done
printf '%s ok, %s differ, %s not to be had here\n' "$ok_count" "$differs_count" "$absent_count"
((differs_count == 0)) || exit 1
