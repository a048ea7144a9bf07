# shellcheck shell=bash disable=SC2034
# (SC2034: some variables are only used by the scripts that source this)
# What apply.sh, revert.sh and check.sh share: the list of items, how an item is read and written, and the record of what was before.
# Sourced, never run. An item is four fields: kind, name, value asked for, rule (`exactly` or `at least`).
#
# Kinds:  sysctl   KEY             a file below /proc/sys
#         choice   PATH            a file that shows its choices with the current one in brackets (transparent huge pages)
#         mask     PATH            a set of cores in hexadecimal (RPS, XPS, interrupts)
#         number   PATH            a number (rps_flow_cnt)
#         ethtool  DEVICE:SETTING  channels, rx-ring, tx-ring, adaptive-rx
#         module   NAME            a kernel module that a setting brought along; only ever unloaded
#         nft      TABLE           the table of the MSS clamp, value: bytes
#         qdisc    DEVICE          queueing discipline, replaced only where the kernel chose it itself
# Files named on a command line or in the record are only taken below the places in `path_allowed`.

tuning_dir=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
state_dir=/var/lib/trunkline/tuning
role='' conf='' only='' devices='' cores=''
with=()
items=()
with_nic=(qdisc channels rings coalesce)
nft_table=trunkline_mss
mss_default=1360

die() {
    printf 'error: %s\n' "$1" >&2
    [[ $# -lt 2 ]] || printf '  remedy: %s\n' "$2" >&2
    exit 2
}

say() { printf '%-7s %s\n' "$1" "$2"; }

# ---- the profile ----

# Adds the settings of a profile, and its options as far as they are asked for. Any line that is neither is a mistake.
profile_read() {
    local file=$1 line number=0 rule=exactly key value option
    local -A wanted=()
    for option in "${with[@]}"; do wanted[$option]=1; done
    [[ -r $file ]] || die "$file: cannot be read" "run the script from its checkout, or name a profile with --conf FILE"
    while IFS= read -r line || [[ -n $line ]]; do
        number=$((number + 1))
        option=''
        case $line in
        '# rule: at least') rule='at least' && continue ;;
        '# rule: '*) die "$file:$number: unknown rule \"${line#\# rule: }\"" 'the one rule known is "at least"' ;;
        '#option '*) option=1 line=${line#\#option } ;;
        '' | '#'*) continue ;;
        esac
        [[ $line =~ ^([a-z][A-Za-z0-9_.-]*)\ =\ ([A-Za-z0-9_\ -]+)$ ]] ||
            die "$file:$number: not a setting: $line" 'write "key = value", or "#option key = value"'
        key=${BASH_REMATCH[1]} value=${BASH_REMATCH[2]}
        [[ $key =~ ^(net|vm|fs|kernel)\.[^.] && $key != *..* ]] ||
            die "$file:$number: $key: keys begin with net., vm., fs. or kernel."
        if [[ -n $option ]]; then
            options_known+=("$key")
            if [[ -z ${wanted[$key]:-} && -z ${wanted[${key##*.}]:-} ]]; then rule=exactly && continue; fi
        fi
        [[ $only == net && $key != net.* ]] || items+=("sysctl"$'\t'"$key"$'\t'"$value"$'\t'"$rule")
        rule=exactly
    done <"$file"
}

# Every option that was asked for exists; else all that do are told.
options_check() {
    local option known bytes
    for option in "${with[@]}"; do
        for known in "${options_known[@]}" "${with_nic[@]}"; do
            [[ $option != "$known" && $option != "${known##*.}" ]] || continue 2
        done
        if [[ $option == mss-clamp || $option == mss-clamp=* ]]; then
            bytes=$mss_default
            [[ $option == mss-clamp ]] || bytes=${option#*=}
            if [[ ! $bytes =~ ^[1-9][0-9]{2,3}$ ]] || ((bytes < 536 || bytes > 9000)); then
                die "--with $option: not a number of bytes for a segment" 'take 536 to 9000; 1360 fits most tunnels'
            fi
            items+=("nft"$'\t'"$nft_table"$'\t'"$bytes"$'\t'"exactly")
            continue
        fi
        die "--with $option: no such option" "known here are: mss-clamp mss-clamp=BYTES ${with_nic[*]} ${options_known[*]}"
    done
}

# Fills `items` in the order in which they are applied.
items_collect() {
    local line plan nic=(plan)
    options_known=()
    items=()
    profile_read "${conf:-$tuning_dir/sysctl.d/60-trunkline-$role.conf}"
    options_check
    if [[ $only != net ]]; then
        items+=("choice"$'\t'"/sys/kernel/mm/transparent_hugepage/enabled"$'\t'"madvise"$'\t'"exactly")
    fi
    [[ -z $devices ]] || nic+=(--devices "$devices")
    [[ -z $cores ]] || nic+=(--cores "$cores")
    [[ -z $only ]] || nic+=(--only "$only")
    for line in "${with[@]}"; do
        case " ${with_nic[*]} " in *" $line "*) nic+=(--with "$line") ;; esac
    done
    plan=$("$tuning_dir/nic.sh" "${nic[@]}") || exit 2
    while IFS= read -r line; do [[ -z $line ]] || items+=("$line"); done <<<"$plan"
}

# ---- reading, comparing, writing ----
# item_read sets `reading` and returns 0, or sets `reason` and returns 1. item_write sets `reason` when it returns 1.

path_of() {
    case $1 in
    sysctl) printf '/proc/sys/%s' "${2//./\/}" ;;
    *) printf '%s' "$2" ;;
    esac
}

path_allowed() {
    [[ $1 != *..* ]] || return 1
    [[ $1 =~ ^/proc/sys/(net|vm|fs|kernel)/[A-Za-z0-9_/-]+$ ]] ||
        [[ $1 =~ ^/sys/class/net/[A-Za-z0-9_.@-]+/queues/[rt]x-[0-9]+/(rps_cpus|rps_flow_cnt|xps_cpus)$ ]] ||
        [[ $1 =~ ^/proc/irq/[0-9]+/smp_affinity$ || $1 == /sys/kernel/mm/transparent_hugepage/enabled ]]
}

file_read() {
    local path
    path=$(path_of "$1" "$2")
    path_allowed "$path" || { reason='not a place that this script touches' && return 1; }
    if [[ ! -e $path ]]; then
        reason='this kernel does not have it'
        [[ $1 != sysctl || $2 != net.* ]] || reason+=', or only in the first network namespace'
        return 1
    fi
    { reading=$(<"$path"); } 2>/dev/null || { reason='cannot be read here' && return 1; }
    if [[ $1 == choice ]]; then
        [[ $reading =~ \[([a-z+]+)\] ]] || { reason="not understood: $reading" && return 1; }
        reading=${BASH_REMATCH[1]}
    fi
}

file_write() {
    local path error
    path=$(path_of "$1" "$2")
    path_allowed "$path" || { reason='not a place that this script touches' && return 1; }
    error=$({ printf '%s\n' "$3" >"$path"; } 2>&1) && return 0
    case ${error##*: } in
    'Permission denied' | 'Read-only file system' | 'Operation not permitted') reason='read-only here (a container, or not in the first network namespace)' ;;
    'No such file or directory') reason="this kernel has no \"$3\"" ;;
    *) reason="the kernel refuses \"$3\": ${error##*: }" ;;
    esac
    return 1
}

ethtool_read() {
    local device=${1%%:*} setting=${1#*:} text
    command -v ethtool >/dev/null || { reason='ethtool is not installed' && return 1; }
    case $setting in
    channels) text=$(ethtool --show-channels "$device" 2>/dev/null | sed -n '/Current/,$s/^Combined:[[:space:]]*//p') ;;
    rx-ring | tx-ring)
        text=$(ethtool --show-ring "$device" 2>/dev/null | sed -n "/Current/,\$s/^$(tr rtx RTX <<<"${setting%-ring}"):[[:space:]]*//p")
        ;;
    adaptive-rx) text=$(ethtool --show-coalesce "$device" 2>/dev/null | sed -n 's/^Adaptive RX: \([a-z/]*\).*/\1/p') ;;
    *) reason='no such setting' && return 1 ;;
    esac
    [[ $text =~ ^([0-9]+|on|off)$ ]] || { reason='the driver does not tell it' && return 1; }
    reading=$text
}

ethtool_write() {
    local device=${1%%:*} setting=${1#*:} error
    case $setting in
    channels) error=$(ethtool --set-channels "$device" combined "$2" 2>&1) && return 0 ;;
    rx-ring | tx-ring) error=$(ethtool --set-ring "$device" "${setting%-ring}" "$2" 2>&1) && return 0 ;;
    adaptive-rx) error=$(ethtool --coalesce "$device" adaptive-rx "$2" 2>&1) && return 0 ;;
    *) error='no such setting' ;;
    esac
    reason="the driver refuses: ${error##*: }"
    return 1
}

# `absent`, or the bytes and a sum of the whole table, so that a table somebody else has changed is seen as changed.
nft_read() {
    local text
    [[ $1 == "$nft_table" ]] || { reason='not a table of this script' && return 1; }
    command -v nft >/dev/null || { reason='nft is not installed' && return 1; }
    nft list tables >/dev/null 2>&1 || { reason='this kernel has no nftables, or it may not be used here' && return 1; }
    if ! text=$(nft --stateless list table inet "$1" 2>/dev/null); then reading=absent && return 0; fi
    [[ $text =~ maxseg\ size\ set\ ([0-9]+) ]] || { reading="other $(cksum <<<"$text" | cut --delimiter=' ' --fields=1)" && return 0; }
    reading="${BASH_REMATCH[1]} (table $(cksum <<<"$text" | cut --delimiter=' ' --fields=1))"
}

# Output lowers what peers send to us, input what we send to them. The kernel never raises a size here.
nft_write() {
    local error rule="tcp flags syn tcp option maxseg size set $2"
    if [[ $2 == absent ]]; then
        error=$(nft delete table inet "$1" 2>&1) && return 0
    else
        error=$(nft --file - 2>&1 <<-RULES
			table inet $1
			delete table inet $1
			table inet $1 {
			    chain output { type filter hook output priority mangle; policy accept; $rule; }
			    chain input { type filter hook input priority mangle; policy accept; $rule; }
			}
		RULES
        ) && return 0
    fi
    reason="nft refuses: ${error%%$'\n'*}"
    return 1
}

# The kind of the root, with `by the kernel` where nobody configured it (handle 0).
qdisc_read() {
    local text
    command -v tc >/dev/null || { reason='tc is not installed' && return 1; }
    text=$(tc qdisc show dev "$1" 2>/dev/null) || { reason='no such device' && return 1; }
    [[ ${text%%$'\n'*} =~ ^qdisc\ ([a-z_]+)\ ([0-9a-f]+):\ (dev\ [^\ ]+\ )?root ]] || { reason='tc is not understood' && return 1; }
    reading=${BASH_REMATCH[1]}
    [[ ${BASH_REMATCH[2]} != 0 ]] || reading+=' by the kernel'
    # Below mq, the children are what counts.
    if [[ $text =~ ^qdisc\ mq\  ]]; then
        reading=$(sed -n 's/^qdisc \([a-z_]*\) .*parent.*/\1/p' <<<"$text" | sort -u | paste --serial --delimiters=+)${reading#mq}
    fi
}

qdisc_write() {
    local error kind=$2
    if [[ $kind == *' by the kernel' ]]; then
        error=$(tc qdisc del dev "$1" root 2>&1) && return 0
    else
        [[ $reading == *' by the kernel' && $reading != noqueue* ]] || { reason="somebody configured $reading there" && return 1; }
        # A NIC of several queues gets mq, whose children come from net.core.default_qdisc.
        if [[ -e /sys/class/net/$1/queues/tx-1 ]]; then
            [[ $(cat /proc/sys/net/core/default_qdisc 2>/dev/null) == "$kind" ]] ||
                { reason="net.core.default_qdisc is not $kind, and mq takes what is below it from there" && return 1; }
            kind=mq
        fi
        error=$(tc qdisc replace dev "$1" root handle 7a: "$kind" 2>&1) && return 0
    fi
    reason="tc refuses: ${error##*: }"
    return 1
}

item_read() {
    reading='' reason=''
    case $1 in
    sysctl | choice | mask | number) file_read "$1" "$2" ;;
    ethtool) ethtool_read "$2" ;;
    module) [[ $2 =~ ^(tcp|sch)_[a-z0-9_]+$ ]] && if [[ -e /sys/module/$2 ]]; then reading=loaded; else reading=absent; fi ;;
    nft) nft_read "$2" ;;
    qdisc) qdisc_read "$2" ;;
    *) reason="unknown kind $1" && return 1 ;;
    esac
}

item_write() {
    reason=''
    case $1 in
    sysctl | choice | mask | number) file_write "$@" ;;
    ethtool) ethtool_write "$2" "$3" ;;
    module) modprobe --remove "$2" 2>/dev/null || { reason='in use; it goes with the next restart' && return 1; } ;;
    nft) nft_write "$2" "$3" ;;
    qdisc) qdisc_write "$2" "$3" ;;
    esac
}

# One form for comparing: spaces for tabs, masks without commas and leading zeros.
normal() {
    local text=$2
    local -a words
    case $1 in
    sysctl) read -r -a words <<<"$text" && text=${words[*]} ;;
    mask) text=${text//,/} && text=${text#"${text%%[!0]*}"} && text=${text,,} && text=${text:-0} ;;
    nft) [[ $text != *' (table '* ]] || text=${text%% *} ;;
    qdisc) text=${text% by the kernel} ;;
    esac
    printf '%s' "$text"
}

# Decimals of any length: whether the first is at least the second.
number_at_least() {
    [[ $1 =~ ^[0-9]+$ && $2 =~ ^[0-9]+$ ]] || return 1
    ((${#1} > ${#2})) || { ((${#1} == ${#2})) && [[ $1 > $2 || $1 == "$2" ]]; }
}

# What is to be written, given what is: with `at least` the greater of the two, field by field. Masks keep their commas: the
# kernel refuses more than eight digits between two of them.
target() {
    local kind=$1 asked=$2 is=$3 rule=$4 i
    local -a want have
    read -r -a want <<<"$asked"
    read -r -a have <<<"$is"
    if [[ $rule == 'at least' && ${#want[@]} == "${#have[@]}" ]]; then
        for i in "${!want[@]}"; do
            ! number_at_least "${have[i]}" "${want[i]}" || want[i]=${have[i]}
        done
        printf '%s' "${want[*]}"
    elif [[ $kind == mask ]]; then
        printf '%s' "$asked"
    else
        normal "$kind" "$asked"
    fi
}

# Values that would harm this machine. Prints the reason, or nothing.
harm() {
    local memory_kib pages page_kib group
    local -a fields
    read -r -a fields <<<"$2"
    memory_kib=$(sed -n 's/^MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo)
    case $1 in
    vm.min_free_kbytes)
        ((fields[0] <= memory_kib / 20)) || printf 'more than a twentieth of the memory here, %s KiB' "$memory_kib"
        ;;
    net.ipv4.tcp_mem)
        page_kib=$(($(getconf PAGESIZE) / 1024)) pages=$((memory_kib / 2))
        ((fields[2] * page_kib <= pages)) || printf 'more than half of the memory here, %s KiB' "$memory_kib"
        ;;
    kernel.io_uring_disabled)
        group=$(cat /proc/sys/kernel/io_uring_group 2>/dev/null || printf -- -1)
        if [[ $reading == 1 && $group != -1 ]]; then
            printf 'is 1 with group %s: put the user of trunkline into that group' "$group"
        fi
        ;;
    esac
}

# Why a value cannot be had from this kernel, as far as that can be told without trying. Prints the reason, or nothing. It is
# only asked where the value is another: a container without modules may well see one that its node has loaded.
lacks() {
    local option config choices
    case $1=$2 in
    net.core.default_qdisc=fq) option=CONFIG_NET_SCH_FQ ;;
    net.ipv4.tcp_congestion_control=bbr) option=CONFIG_TCP_CONG_BBR ;;
    *) return 0 ;;
    esac
    if config=$(zcat /proc/config.gz 2>/dev/null || cat "/boot/config-$(uname --kernel-release)" 2>/dev/null); then
        [[ $config != *"# $option is not set"* ]] || printf 'this kernel has no "%s" (%s)' "$2" "$option"
    elif [[ $2 == bbr ]]; then
        choices=$(cat /proc/sys/net/ipv4/tcp_available_congestion_control 2>/dev/null) || return 0
        [[ " $choices " == *" $2 "* ]] || PATH=$PATH:/usr/sbin:/sbin modprobe --dry-run --quiet "tcp_$2" 2>/dev/null ||
            printf 'this kernel offers %s, and there is no module tcp_%s' "$choices" "$2"
    fi
}

# Whether what an item names is no longer there at all: a queue that went with a smaller number of channels, a device that was
# pulled. Then nothing of it is in force, and there is nothing to restore. A /sys of another network namespace proves nothing.
item_gone() {
    local path device=${2%%:*}
    case $1 in
    sysctl | mask | number)
        path=$(path_of "$1" "$2")
        path_allowed "$path" && [[ ! -e $path ]] || return 1
        [[ $path == /sys/class/net/* ]] || return 0
        device=${path#/sys/class/net/} device=${device%%/*}
        [[ ! -d /sys/class/net/$device/queues ]] || return 0
        ;;
    ethtool | qdisc) ;;
    *) return 1 ;;
    esac
    command -v ip >/dev/null && ip link show dev lo >/dev/null 2>&1 && ! ip link show dev "$device" >/dev/null 2>&1
}

# ---- the record ----
# state_dir/record: lines `boot ID`, `netns ID`, and per item `before KIND NAME VALUE`, written before the item is touched, and
# `after KIND NAME VALUE`, what was read once it had been. Fields are separated by tabs, and the value goes to the end of the line.

declare -A before=() after=()
order=()

boot_id() { cat /proc/sys/kernel/random/boot_id 2>/dev/null || printf 'unknown'; }
netns_id() { readlink /proc/self/ns/net 2>/dev/null || printf 'unknown'; }

# Values from here are written by root: nobody else may have written them.
record_guard() {
    local owner mode
    [[ -e $state_dir ]] || return 0
    owner=$(stat --dereference --format=%u "$state_dir") mode=$(stat --dereference --format=%a "$state_dir")
    [[ -d $state_dir && $owner == "$(id --user)" && $((8#$mode & 8#022)) == 0 ]] ||
        die "$state_dir: must be a directory of this user that nobody else can write to" "chmod go-w it, or name another with --state DIR"
}

# Fills `before`, `after` and `order`. Returns 1 when there is no record of this boot.
record_read() {
    local tag kind name value boot='' netns=''
    before=() after=() order=()
    [[ -r $state_dir/record ]] || return 1
    while IFS=$'\t' read -r tag kind name value; do
        case $tag in
        boot) boot=$kind ;;
        netns) netns=$kind ;;
        before)
            [[ -n ${before[$kind:$name]+set} ]] || order+=("$kind"$'\t'"$name")
            before[$kind:$name]=$value
            ;;
        after) after[$kind:$name]=$value ;;
        *) die "$state_dir/record: line not understood: $tag" 'it was damaged or is of another version; restart the machine to get rid of all settings' ;;
        esac
    done <"$state_dir/record"
    if [[ $boot != "$(boot_id)" ]]; then before=() after=() order=() && return 1; fi
    [[ $netns == "$(netns_id)" ]] ||
        die "$state_dir: recorded in another network namespace ($netns)" 'run this there (nsenter), or name another --state DIR'
}

record_begin() {
    (umask 022 && mkdir --parents "$state_dir")
    record_guard
    exec 9>"$state_dir/lock"
    flock --nonblock 9 || die "$state_dir: another apply.sh or revert.sh is at work" 'wait for its end'
    if record_read; then return 0; fi
    if [[ -e $state_dir/record ]]; then
        say note "the record in $state_dir is of an earlier boot, and nothing of that is in force: a new one begins"
    fi
    printf 'boot\t%s\nnetns\t%s\n' "$(boot_id)" "$(netns_id)" >"$state_dir/record"
}

record_add() { printf '%s\t%s\t%s\t%s\n' "$@" >>"$state_dir/record"; }

# Values of options that need one.
argument() { [[ $# -ge 2 && -n $2 ]] || die "$1: needs a value"; }

# Options that apply.sh and check.sh share; prints nothing, sets the globals, returns how many words it took.
option_common() {
    case $1 in
    --state) argument "$@" && state_dir=$2 ;;
    --with) argument "$@" && with+=("$2") ;;
    --conf) argument "$@" && conf=$2 ;;
    --devices) argument "$@" && devices=$2 ;;
    --cores) argument "$@" && cores=$2 ;;
    --only) argument "$@" && only=$2 && { [[ $only == net ]] || die "--only $only: unknown" 'the one choice is --only net'; } ;;
    pop | gateway) [[ -z $role ]] || die "$role and $1: one of them" && role=$1 && taken=1 && return 0 ;;
    *) return 1 ;;
    esac
    taken=2
}
