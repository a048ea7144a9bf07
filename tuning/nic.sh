#!/usr/bin/env bash
# Which NIC queue and which interrupt belongs to which core. Changes nothing: `plan` prints items for apply.sh, which records and
# applies them; `show` prints what is. See tuning/lib.sh for the fields of an item.
#
# The plan: each queue's interrupt to one core. With a queue for every core, transmit queues follow the cores (XPS), and RPS and RFS
# are off, also where an earlier plan with fewer queues had switched them on.
# With fewer, RPS spreads over all cores and RFS sends each connection to the core whose worker reads it.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: nic.sh plan|show [--devices A,B] [--cores 0,1] [--with channels|rings|coalesce|qdisc]... [--only net]
  --devices   default: those that have hardware behind them
  --cores     cores that workers run on; default: all that are online
  --with      channels: as many queues as cores (resets the link on some NICs); rings: longest rings (the same);
              coalesce: adaptive interrupt moderation; qdisc: the queueing discipline of the profile (fq) on devices that are up
  --only net  leave interrupts out: they belong to the machine, not to a network namespace
TEXT
}

flow_entries=32768
action='' devices='' cores='' only=''
declare -A with=()

die() { printf 'error: %s\n' "$1" >&2 && exit 2; }
note() { printf 'note    %s\n' "$1" >&2; }
item() { printf '%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "${4:-exactly}"; }

# 0-3,8 becomes 0 1 2 3 8.
list_expand() {
    local part first last
    for part in ${1//,/ }; do
        [[ $part =~ ^([0-9]{1,4})(-([0-9]{1,4}))?$ ]] || die "--cores $1: not a list of cores such as 0,1 or 0-3"
        first=$((10#${BASH_REMATCH[1]})) last=$((10#${BASH_REMATCH[3]:-$first}))
        ((first <= last)) || die "--cores $1: $part runs backwards"
        seq "$first" "$last"
    done
}

# Cores to a mask as sysfs takes it: groups of 32 bits, highest first.
mask() {
    local core words=() i text=''
    for core in "$@"; do words[core / 32]=$((${words[core / 32]:-0} | 1 << (core % 32))); done
    i=${!words[*]} i=${i##* }
    printf -v text '%x' "${words[i]}"
    while ((i-- > 0)); do printf -v text '%s,%08x' "$text" "${words[i]:-0}"; done
    printf '%s' "$text"
}

# /sys may show another network namespace's devices than the kernel would let us speak to: both must know the same one.
same_device() {
    local index
    index=$(ip -oneline link show dev "$1" 2>/dev/null | cut --delimiter=: --fields=1) || return 1
    [[ -n $index && -r /sys/class/net/$1/ifindex && $index == "$(<"/sys/class/net/$1/ifindex")" ]] &&
        [[ $(ip -oneline link show dev "$1") == *" $(<"/sys/class/net/$1/address") "* ]]
}

devices_find() {
    local path device
    if [[ -n $devices ]]; then
        for device in ${devices//,/ }; do
            [[ $device =~ ^[A-Za-z0-9_.@-]{1,15}$ && $device != .* ]] || die "--devices $device: not the name of a device"
            if same_device "$device"; then printf '%s\n' "$device"; else note "$device: no such device in this network namespace"; fi
        done
        return
    fi
    for path in /sys/class/net/*/device; do
        device=${path%/device} device=${device##*/}
        ! same_device "$device" 2>/dev/null || printf '%s\n' "$device"
    done
}

count() { find "/sys/class/net/$1/queues" -maxdepth 1 -name "$2-*" 2>/dev/null | wc --lines; }

# Interrupts of a device's queues, one `number name` a line. Those for configuration and events stay where they are.
interrupts() {
    local path number name
    path=$(readlink --canonicalize "/sys/class/net/$1/device" 2>/dev/null) || return 0
    # A virtio device has them one level up, at its PCI function.
    [[ -d $path/msi_irqs ]] || path=${path%/*}
    [[ -d $path/msi_irqs ]] || return 0
    for number in $(find "$path/msi_irqs" -mindepth 1 -printf '%f\n' | sort --numeric-sort); do
        name=$(find "/proc/irq/$number" -mindepth 1 -maxdepth 1 -type d -printf '%f\n' 2>/dev/null | head --lines=1)
        [[ -n $name && ! $name =~ config|async|control|ctrl|misc|fdir|ptp|event|mgmt|mbx|admin ]] || continue
        printf '%s %s\n' "$number" "$name"
    done
}

# Each kind of interrupt (receive, transmit, both) counts from the first core.
plan_interrupts() {
    local number name kind
    local -A seen=()
    [[ $only != net ]] || return 0
    if pgrep -x irqbalance >/dev/null 2>&1; then
        note "$1: irqbalance runs and would undo it: interrupts stay where they are (remedy: systemctl disable --now irqbalance)"
        return 0
    fi
    while read -r number name; do
        [[ -n $number ]] || continue
        # The name without the queue's number: virtio2-input.0 and virtio2-input.1 are one kind.
        kind=${name%%@*} && kind=${kind%"${kind##*[!0-9]}"}
        item mask "/proc/irq/$number/smp_affinity" "$(mask "${core_list[${seen[$kind]:-0} % ${#core_list[@]}]}")"
        seen[$kind]=$((${seen[$kind]:-0} + 1))
    done < <(interrupts "$1")
}

plan_queues() {
    local device=$1 queue rx tx i mine flows
    rx=$(count "$device" rx) tx=$(count "$device" tx)
    if ((rx < ${#core_list[@]})); then
        flows=$((flow_entries / (rx > 0 ? rx : 1)))
        for ((queue = 0; queue < rx; queue++)); do
            item mask "/sys/class/net/$device/queues/rx-$queue/rps_cpus" "$(mask "${core_list[@]}")"
            item number "/sys/class/net/$device/queues/rx-$queue/rps_flow_cnt" "$flows" 'at least'
        done
        item sysctl net.core.rps_sock_flow_entries "$flow_entries" 'at least'
    else
        # Both: a queue with a table of flows steers by it also without cores in rps_cpus.
        for ((queue = 0; queue < rx; queue++)); do
            item mask "/sys/class/net/$device/queues/rx-$queue/rps_cpus" 0
            item number "/sys/class/net/$device/queues/rx-$queue/rps_flow_cnt" 0
        done
    fi
    ((tx > 1)) || return 0
    for ((queue = 0; queue < tx; queue++)); do
        mine=()
        for ((i = queue; i < ${#core_list[@]}; i += tx)); do mine+=("${core_list[i]}"); done
        ((${#mine[@]})) || mine=("${core_list[queue % ${#core_list[@]}]}")
        item mask "/sys/class/net/$device/queues/tx-$queue/xps_cpus" "$(mask "${mine[@]}")"
    done
}

# Maximum that ethtool tells, or nothing.
ethtool_max() { ethtool "$1" "$2" 2>/dev/null | sed -n "/maximums/,/Current/s/^$3:[[:space:]]*\([0-9][0-9]*\)\$/\1/p" || true; }

plan_driver() {
    local device=$1 max ring
    if [[ -n ${with[channels]:-} ]]; then
        max=$(ethtool_max --show-channels "$device" Combined)
        if [[ -z $max ]]; then
            note "$device: its driver tells no number of channels"
        else
            item ethtool "$device:channels" $((max < ${#core_list[@]} ? max : ${#core_list[@]}))
            note "$device: run apply.sh again if the number of queues changes: the plan of queues is made for those there are now"
        fi
    fi
    if [[ -n ${with[rings]:-} ]]; then
        for ring in RX TX; do
            max=$(ethtool_max --show-ring "$device" "$ring")
            if [[ -n $max ]]; then item ethtool "$device:${ring,,}-ring" "$max"; else note "$device: its driver tells no length of its $ring ring"; fi
        done
    fi
    [[ -z ${with[coalesce]:-} ]] || item ethtool "$device:adaptive-rx" on
    [[ -z ${with[qdisc]:-} ]] || item qdisc "$device" fq
}

plan() {
    local device found any=''
    found=$(devices_find) || exit 2
    for device in $found; do
        any=1
        plan_driver "$device"
        plan_interrupts "$device"
        if ((${#core_list[@]} > 1)); then plan_queues "$device"; else note "$device: one core: nothing to spread"; fi
    done
    [[ -n $any ]] || note 'no NIC in this network namespace: queues and interrupts are left'
}

show() {
    local device found path number name
    found=$(devices_find) || exit 2
    for device in $found; do
        printf '%s: %s receive and %s transmit queues, %s\n' "$device" "$(count "$device" rx)" "$(count "$device" tx)" \
            "$(tc qdisc show dev "$device" root 2>/dev/null | head --lines=1)"
        while read -r number name; do
            [[ -z $number ]] || printf '  interrupt %s %s: cores %s\n' "$number" "$name" "$(cat "/proc/irq/$number/smp_affinity_list" 2>/dev/null)"
        done < <(interrupts "$device")
        for path in "/sys/class/net/$device"/queues/*/{rps_cpus,rps_flow_cnt,xps_cpus}; do
            [[ ! -r $path ]] || printf '  %s: %s\n' "${path#"/sys/class/net/$device/queues/"}" "$(cat "$path" 2>/dev/null || printf 'not here')"
        done
    done
}

while (($#)); do
    case $1 in
    plan | show) action=$1 && shift && continue ;;
    --help | -h) usage && exit 0 ;;
    --devices | --cores | --with | --only) [[ $# -ge 2 ]] || die "$1: needs a value" ;;
    *) usage >&2 && die "$1: unknown" ;;
    esac
    case $1 in
    --devices) devices=$2 ;;
    --cores) cores=$2 ;;
    --with) with[$2]=1 ;;
    --only) only=$2 ;;
    esac
    shift 2
done
[[ -n $action ]] || { usage >&2 && exit 2; }
[[ -n $cores ]] || cores=$(cat /sys/devices/system/cpu/online 2>/dev/null || printf '0-%s' "$(($(nproc) - 1))")
core_text=$(list_expand "$cores") || exit 2
mapfile -t core_list <<<"$core_text"
[[ -n ${core_list[0]} ]] || die '--cores: names none'
"$action"
