//! tuning/: every setting is explained, scripts change what they say and restore what was, and the seccomp profile lets
//! Trunkline run. Whatever changes a setting runs in a network namespace of its own with `--only net`, and refuses to run in
//! any other, or with directories of its own in place of /sys and /proc/sys: the machine's own settings are never touched.
//! What cannot be tested here is skipped with its reason.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const PROFILES: [&str; 2] = ["pop", "gateway"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn profile_path(role: &str) -> String {
    format!("tuning/sysctl.d/60-trunkline-{role}.conf")
}

/// Whether a command can be started at all.
fn has(command: &str) -> bool {
    Command::new(command).arg("--version").output().is_ok()
}

fn text_of(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// One setting of a profile with its comments.
struct Setting {
    key: String,
    value: String,
    is_option: bool,
    at_least: bool,
    /// Tag and text, in the order in which they stand there.
    comments: Vec<(String, String)>,
}

/// Reads a profile as strictly as the contract of its format says. Comments that stand apart, behind an empty line, belong to no setting.
fn settings(role: &str) -> Vec<Setting> {
    let mut found = Vec::new();
    let mut comments: Vec<(String, String)> = Vec::new();
    for (index, line) in read(&profile_path(role)).lines().enumerate() {
        let place = format!("{}:{}: {line}", profile_path(role), index + 1);
        if line.is_empty() {
            comments.clear();
        } else if let Some(continued) = line.strip_prefix("#   ") {
            if let Some((_, text)) = comments.last_mut() {
                text.push(' ');
                text.push_str(continued);
            }
        } else if let Some(comment) = line.strip_prefix("# ") {
            let (tag, text) = comment.split_once(": ").unwrap_or(("", comment));
            comments.push((tag.to_owned(), text.to_owned()));
        } else if line != "#" {
            let is_option = line.starts_with("#option ");
            let setting = line.strip_prefix("#option ").unwrap_or(line);
            let (key, value) = setting.split_once(" = ").unwrap_or_else(|| panic!("{place}: no setting"));
            let mut comments = std::mem::take(&mut comments);
            let at_least = comments.pop_if(|(tag, _)| tag == "rule").is_some_and(|(_, rule)| rule == "at least");
            found.push(Setting { key: key.to_owned(), value: value.to_owned(), is_option, at_least, comments });
        }
    }
    found
}

#[test]
fn every_setting_says_why_effect_sign_and_undoing() {
    for role in PROFILES {
        let settings = settings(role);
        assert!(settings.len() > 20, "{role} has {}", settings.len());
        for setting in &settings {
            let tags: Vec<&str> = setting.comments.iter().map(|(tag, _)| tag.as_str()).collect();
            assert_eq!(tags, ["why", "effect", "see", "undo"], "{role}: {}", setting.key);
            for (tag, text) in &setting.comments {
                assert!(text.len() > 15, "{role}: {}: {tag} says too little: {text}", setting.key);
            }
            let undo = &setting.comments[3].1;
            assert!(undo.contains(&setting.key), "{role}: {}: undo does not name it: {undo}", setting.key);
        }
    }
}

#[test]
fn keys_are_unique_and_values_are_words_and_numbers() {
    for role in PROFILES {
        let mut keys = BTreeSet::new();
        for setting in settings(role) {
            assert!(keys.insert(setting.key.clone()), "{role}: {} twice", setting.key);
            let area = setting.key.split('.').next().unwrap_or_default();
            assert!(["net", "vm", "fs", "kernel"].contains(&area), "{role}: {}", setting.key);
            let is_numeric = setting.value.split(' ').all(|field| field.parse::<u64>().is_ok());
            let is_name = setting.value.chars().all(|letter| letter.is_ascii_lowercase());
            assert!(is_numeric || is_name, "{role}: {} = {}", setting.key, setting.value);
            assert!(is_numeric || !setting.at_least, "{role}: {}: `at least` needs numbers", setting.key);
        }
    }
}

#[test]
fn profiles_set_what_trunkline_relies_on() {
    let value = |role: &str, key: &str| {
        let found = settings(role).into_iter().find(|setting| setting.key == key && !setting.is_option);
        found.unwrap_or_else(|| panic!("{role} does not set {key}")).value
    };
    assert_eq!(value("pop", "net.ipv4.tcp_fastopen"), "3", "the default `fast_open` needs bit 2");
    for role in PROFILES {
        let number = |key: &str| value(role, key).parse::<u64>().expect("a number");
        assert!(number("net.core.somaxconn") >= 4096, "the default `backlog`");
        assert_eq!(value(role, "net.ipv4.tcp_slow_start_after_idle"), "0", "design: trunks keep their window");
        assert_eq!(value(role, "kernel.io_uring_disabled"), "0");
        let unit = read(&format!("tuning/systemd/trunkline-{role}.service"));
        let limit = unit.lines().find_map(|line| line.strip_prefix("LimitNOFILE=")).expect("the unit sets it");
        assert!(number("fs.nr_open") >= limit.parse().expect("a number"), "or the unit gets less, and is not told");
    }
    // The gateway's ports for dialling leave those out that the examples listen on.
    let range = value("gateway", "net.ipv4.ip_local_port_range");
    let first: u16 = range.split(' ').next().and_then(|text| text.parse().ok()).expect("two ports");
    assert!(first > 9902, "{range}");
}

#[test]
fn what_fits_only_some_machines_is_an_option() {
    for role in PROFILES {
        for key in ["vm.min_free_kbytes", "fs.file-max", "net.ipv4.tcp_mem"] {
            let found = settings(role).into_iter().find(|setting| setting.key == key);
            assert!(
                found.is_some_and(|setting| setting.is_option),
                "{role}: /etc/sysctl.d would set {key} on any machine"
            );
        }
    }
}

#[test]
fn the_unit_of_the_profile_puts_fq_on_devices_that_are_up() {
    let unit = read("tuning/systemd/trunkline-tuning@.service");
    let command = "ExecStart=/usr/local/lib/trunkline/tuning/apply.sh %i --with qdisc";
    assert!(unit.contains("After=network-online.target") && unit.lines().any(|line| line == command), "{unit}");
    // It is an option of both profiles.
    for role in PROFILES {
        expect(&format!("./apply.sh {role} --only net --dry-run --with qdisc"), &["nothing was changed"]);
    }
}

#[test]
fn units_reload_drain_and_check() {
    for role in PROFILES {
        let unit = read(&format!("tuning/systemd/trunkline-{role}.service"));
        let command = format!("ExecStart=/usr/local/bin/trunkline {role} --config /etc/trunkline/{role}.toml");
        assert!(unit.lines().any(|line| line == command), "{role}");
        assert!(unit.lines().any(|line| line == format!("{} --check", command.replace("Start=", "StartPre="))));
        // An edge node must not wait for a person: no limit of starts, which belongs to the first section, and no exit code is the end.
        let (first, service) = unit.split_once("[Service]").expect("the unit has one");
        assert!(first.lines().any(|line| line == "StartLimitIntervalSec=0"), "{role}");
        assert!(
            service.lines().any(|line| line == "Restart=on-failure") && !service.contains("RestartPrevent"),
            "{role}"
        );
        assert!(unit.contains("ExecReload=/bin/kill -HUP $MAINPID"), "SIGHUP rereads certificates");
        let stop = unit.lines().find_map(|line| line.strip_prefix("TimeoutStopSec=")).expect("the unit sets it");
        assert!(stop.parse::<u64>().expect("seconds") > 25, "longer than the default of drain_timeout");
        for line in ["NoNewPrivileges=yes", "ProtectSystem=strict", "User=trunkline", "LimitCORE=0"] {
            assert!(unit.lines().any(|found| found == line), "{role}: {line}");
        }
        let filter = unit.lines().find(|line| line.starts_with("SystemCallFilter=@")).expect("the unit has one");
        assert!(filter.ends_with("io_uring_setup io_uring_enter io_uring_register"));
    }
}

#[test]
fn shellcheck_finds_nothing() {
    if !has("shellcheck") {
        eprintln!("skipped: shellcheck is not installed");
        return;
    }
    let scripts = ["apply.sh", "revert.sh", "check.sh", "nic.sh", "lib.sh"];
    let output = Command::new("shellcheck")
        .arg("--external-sources")
        .args(scripts)
        .current_dir(root().join("tuning"))
        .output()
        .expect("it is installed");
    assert!(output.status.success(), "{}", text_of(&output));
}

/// Runs a script of bash in a fresh network namespace, with the folder tuning/ as working directory and `$S` as a place for records.
/// None, with the reason printed, where that cannot be.
fn in_namespace(scratch: &Path, script: &str) -> Option<(bool, String)> {
    let is_root = Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout == b"0\n");
    if !is_root {
        eprintln!("skipped: only root may make a network namespace");
        return None;
    }
    let own = fs::read_link("/proc/self/ns/net").expect("Linux has it");
    let guard = "set -u\n[[ $(readlink /proc/self/ns/net) != \"$HOST\" ]] || { echo not alone; exit 99; }\n\
                 snap() { sysctl -a 2>/dev/null | grep '^net[.]'; nft list ruleset 2>/dev/null; true; }\n";
    let output = Command::new("unshare")
        .args(["--net", "bash", "-c", &format!("{guard}{script}")])
        .current_dir(root().join("tuning"))
        .env("HOST", own)
        .env("S", scratch.join("state"))
        .env("T", scratch)
        .output();
    match output {
        Ok(output) if !text_of(&output).contains("unshare failed") => Some((output.status.success(), text_of(&output))),
        _ => {
            eprintln!("skipped: no network namespace can be made here");
            None
        }
    }
}

fn scratch() -> tempfile::TempDir {
    tempfile::tempdir().expect("there is room for a directory")
}

/// The script must end well and its output hold every one of these.
fn expect(script: &str, wanted: &[&str]) {
    let directory = scratch();
    let Some((good, text)) = in_namespace(directory.path(), script) else { return };
    assert!(good, "{script}\n{text}");
    for part in wanted {
        assert!(text.contains(part), "no {part:?} in:\n{text}");
    }
}

/// A machine of files for scripts that do more than `--only net`: /sys, /proc/sys and /proc/irq are empty directories of its own, with
/// the one device that every namespace has, 2 GiB of memory, and a kernel that tells neither its configuration nor modules.
const MACHINE: &str = r#"
set -u
for place in /sys /proc/sys /proc/irq; do
    mount -t tmpfs tmpfs $place && [[ $(stat --file-system --format=%T $place) == tmpfs ]] || { echo not planted; exit 0; }
done
memory() { printf 'MemTotal: %s kB\n' $1 >$T/meminfo; }
memory 2097152; mount --bind $T/meminfo /proc/meminfo || { echo not planted; exit 0; }
mkdir $T/bin
for name in pgrep zcat uname modprobe; do printf '#!/bin/sh\nexit 1\n' >$T/bin/$name; chmod +x $T/bin/$name; done
PATH=$T/bin:$PATH
plant() { mkdir -p "${1%/*}" && printf '%s\n' "$2" >"$1"; }
net=/sys/class/net/lo; queues=$net/queues
plant $net/ifindex 1; plant $net/address 00:00:00:00:00:00; plant /proc/sys/kernel/random/boot_id this
# Queues up to a number, besides those that are there.
queue() {
    for ((q = 0; q < $1; q++)); do
        [[ ! -e $queues/rx-$q ]] || continue
        plant $queues/rx-$q/rps_cpus 0; plant $queues/rx-$q/rps_flow_cnt 0; plant $queues/tx-$q/xps_cpus 0
    done
}
plant /proc/sys/net/core/rps_sock_flow_entries 0; plant /proc/sys/net/ipv4/tcp_sack 1
printf 'net.ipv4.tcp_sack = 1\n' >$T/conf
"#;

/// As `expect`, on a machine of files.
fn expect_planted(script: &str, wanted: &[&str]) {
    let directory = scratch();
    fs::write(directory.path().join("machine.sh"), format!("{MACHINE}{script}")).expect("there is room");
    let Some((good, text)) = in_namespace(directory.path(), "unshare --mount bash $T/machine.sh") else { return };
    if text.contains("not planted") || text.contains("unshare failed") {
        eprintln!("skipped: nothing can be mounted here: {text}");
        return;
    }
    assert!(good, "{script}\n{text}");
    for part in wanted {
        assert!(text.contains(part), "no {part:?} in:\n{text}");
    }
}

/// bitmap_parse() of the kernel takes eight hexadecimal digits between two commas and refuses more.
#[test]
fn masks_of_cores_above_31_are_written_as_the_kernel_takes_them() {
    expect_planted(
        "queue 16; plant /proc/irq/41/smp_affinity ff; mkdir -p /proc/irq/41/lo-rx-0 $net/device/msi_irqs; touch $net/device/msi_irqs/41\n\
         run() { ./apply.sh pop --conf $T/conf --state $S --devices lo --cores \"$@\" || exit 1; }\n\
         run 0-63 --dry-run | grep tx-15; run 0-63; grep -H . $queues/rx-0/rps_cpus $queues/tx-15/xps_cpus\n\
         run 0-63 | grep ' changed,'; run 32,70; grep -H . $queues/rx-0/rps_cpus $queues/tx-*/xps_cpus /proc/irq/41/smp_affinity\n\
         ! grep -rE '[0-9a-f]{9}' $queues /proc/irq/41/smp_affinity || exit 1\n\
         # As the kernel prints it, padded.\n\
         plant $queues/tx-0/xps_cpus 00000000,00000001,00000000; ./check.sh pop --conf $T/conf --devices lo --cores 32,70",
        &[
            "would   /sys/class/net/lo/queues/tx-15/xps_cpus: 0 -> 80008000,80008000",
            "rx-0/rps_cpus:ffffffff,ffffffff\n",
            "tx-15/xps_cpus:80008000,80008000\n",
            "0 changed",
            "rx-0/rps_cpus:0\n",
            "tx-0/xps_cpus:1,00000000\n",
            "tx-1/xps_cpus:40,00000000,00000000\n",
            "smp_affinity:1,00000000\n",
            " 0 differ,",
        ],
    );
}

#[test]
fn more_queues_end_what_fewer_needed_and_queues_that_go_block_no_revert() {
    expect_planted(
        "run() { ./apply.sh pop --conf $T/conf --state $S --devices lo --cores 0-7; }\n\
         queue 1; run; grep -H . $queues/rx-0/*; queue 8; run; echo then; grep -H . $queues/rx-0/*\n\
         rm -r $queues/[rt]x-[4-7]; ./revert.sh --state $S; echo code $?; [[ ! -e $S ]] && grep -H . $queues/tx-3/*",
        &[
            "rps_cpus:ff\n/sys/class/net/lo/queues/rx-0/rps_flow_cnt:32768\n",
            "then\n/sys/class/net/lo/queues/rx-0/rps_cpus:0\n/sys/class/net/lo/queues/rx-0/rps_flow_cnt:0\n",
            "note    /sys/class/net/lo/queues/tx-7/xps_cpus: is no longer there",
            " 0 left\ncode 0",
            "tx-3/xps_cpus:0\n",
        ],
    );
}

#[test]
fn a_device_that_went_blocks_no_revert_and_one_that_sysfs_hides_does() {
    expect_planted(
        "queue 2; ./apply.sh pop --conf $T/conf --state $S --devices lo --cores 0-1\n\
         # The namespace still has it: this /sys is another's.\n\
         mv $net /sys/hidden; ./revert.sh --state $S; echo hidden code $?\n\
         sed -i s,/net/lo/,/net/tl9/, $S/record; ./revert.sh --state $S; echo gone code $?; [[ ! -e $S ]]",
        &[
            "this kernel does not have it",
            "hidden code 1",
            "tl9/queues/tx-1/xps_cpus: is no longer there",
            "gone code 0",
        ],
    );
}

#[test]
fn what_apply_leaves_for_a_reason_is_not_said_to_differ() {
    expect_planted(
        "plant /proc/sys/vm/min_free_kbytes 45056; plant /proc/sys/kernel/io_uring_disabled 1; plant /proc/sys/kernel/io_uring_group 5\n\
         plant /proc/sys/net/ipv4/tcp_congestion_control cubic\n\
         plant /proc/sys/net/ipv4/tcp_available_congestion_control 'reno cubic'\n\
         printf '# rule: at least\\nvm.min_free_kbytes = 131072\\nkernel.io_uring_disabled = 0\\n' >$T/conf\n\
         ./apply.sh pop --conf $T/conf --state $S; ./check.sh pop --conf $T/conf; echo code $?\n\
         echo 'net.ipv4.tcp_congestion_control = bbr' >>$T/conf; ./check.sh pop --conf $T/conf; echo without bbr $?\n\
         plant /proc/sys/net/ipv4/tcp_available_congestion_control 'reno cubic bbr'; ./check.sh pop --conf $T/conf; echo with bbr $?\n\
         memory 67108864; ./check.sh pop --conf $T/conf; ./apply.sh pop --conf $T/conf --state $S",
        &[
            "cannot  vm.min_free_kbytes: more than a twentieth of the memory here, 2097152 KiB",
            "cannot  kernel.io_uring_disabled: is 1 with group 5",
            "n/a      vm.min_free_kbytes ",
            "45056: more than a twentieth",
            "n/a      kernel.io_uring_disabled ",
            " 0 differ, 3 not to be had here\ncode 0",
            "this kernel offers reno cubic, and there is no module tcp_bbr",
            "without bbr 0",
            "differs  net.ipv4.tcp_congestion_control ",
            "with bbr 1",
            "differs  vm.min_free_kbytes ",
            "set     vm.min_free_kbytes: 45056 -> 131072",
        ],
    );
}

#[test]
fn a_name_that_is_no_device_ends_everything_before_it_begins() {
    expect(
        "snap >$T/before; ./apply.sh pop --only net --devices eth0:1 --state $S; echo apply $?\n\
         ./check.sh pop --only net --devices eth0:1; echo check $?; ./nic.sh show --devices eth0:1; echo show $?\n\
         snap >$T/after; cmp $T/before $T/after && [[ ! -e $S ]] && echo IDENTICAL",
        &["apply 2\ncheck 2\nshow 2\nIDENTICAL", "eth0:1: not the name of a device"],
    );
}

#[test]
fn anybody_may_look_at_what_would_be_restored() {
    if !has("setpriv") {
        eprintln!("skipped: setpriv is not installed");
        return;
    }
    expect(
        "cp -r . $T/tuning; chmod 755 $T; ./apply.sh pop --only net --state $S >/dev/null; cd $T/tuning\n\
         as() { setpriv --reuid=65534 --clear-groups \"$@\"; }\n\
         as ./revert.sh --dry-run --state $S; echo dry $?; as ./revert.sh --state $S; echo wet $?; [[ -e $S/record ]]",
        &["would   net.ipv4.tcp_mtu_probing: 1 -> 0", "dry 0", "nobody else can write to", "wet 2"],
    );
}

#[test]
fn what_is_applied_and_reverted_is_as_it_was() {
    for role in PROFILES {
        expect(
            &format!(
                "snap >$T/before; ./apply.sh {role} --only net --state $S && snap >$T/while\n\
                 ! cmp -s $T/before $T/while && ./check.sh {role} --only net && ./revert.sh --state $S\n\
                 snap >$T/after; cmp $T/before $T/after && [[ ! -e $S ]] && echo IDENTICAL"
            ),
            &["set     net.ipv4.tcp_mtu_probing: 0 -> 1", " 0 differ", " 0 left", "IDENTICAL"],
        );
    }
}

#[test]
fn applying_twice_keeps_what_was_before_the_first() {
    expect(
        "snap >$T/before\n\
         ./apply.sh pop --only net --state $S --with tcp_timestamps --with net.ipv4.tcp_fin_timeout\n\
         ./apply.sh pop --only net --state $S >$T/second; cat $T/second; ! grep -q '^set' $T/second || exit 1\n\
         ./apply.sh gateway --only net --state $S\n\
         ./revert.sh --state $S; snap >$T/after; cmp $T/before $T/after && echo IDENTICAL",
        &["set     net.ipv4.tcp_timestamps: 0 -> 1", "0 changed", "IDENTICAL"],
    );
}

#[test]
fn a_dry_run_changes_nothing_and_records_nothing() {
    expect(
        "snap >$T/before; ./apply.sh pop --only net --dry-run --with mss-clamp --state $S\n\
         snap >$T/after; cmp $T/before $T/after && [[ ! -e $S ]] && echo IDENTICAL",
        &["would   net.ipv4.tcp_mtu_probing: 0 -> 1", "nothing was changed", "IDENTICAL"],
    );
}

#[test]
fn what_cannot_apply_is_told_and_counted_and_no_failure() {
    expect(
        "printf 'net.ipv4.tcp_no_such_key = 1\\nnet.ipv4.tcp_congestion_control = nosuch\\nnet.ipv4.tcp_mtu_probing = 300\\n\
         net.ipv4.tcp_sack = 0\\n' >$T/conf\n\
         ./apply.sh pop --conf $T/conf --only net --state $S; echo code $?\n\
         ./check.sh pop --conf $T/conf --only net; echo code $?; ./revert.sh --state $S; echo code $?",
        &[
            "cannot  net.ipv4.tcp_no_such_key: this kernel does not have it",
            "cannot  net.ipv4.tcp_congestion_control: this kernel has no \"nosuch\"",
            "cannot  net.ipv4.tcp_mtu_probing: the kernel refuses \"300\": Invalid argument",
            "1 changed, 0 were so already, 3 cannot apply here",
            "n/a      net.ipv4.tcp_no_such_key",
            // As before: the two refused values, and the allowed congestion controls and the module recorded beside the first.
            "1 restored, 4 were as before, 0 left\ncode 0",
        ],
    );
}

#[test]
fn what_somebody_else_changed_is_told_and_left_unless_forced() {
    expect(
        "./apply.sh pop --only net --state $S >/dev/null; sysctl -qw net.ipv4.tcp_mtu_probing=2\n\
         ./revert.sh --state $S; echo code $? $(sysctl -n net.ipv4.tcp_mtu_probing) $(sysctl -n net.ipv4.tcp_fastopen)\n\
         ./revert.sh --force --state $S; echo code $? $(sysctl -n net.ipv4.tcp_mtu_probing)",
        &["left    net.ipv4.tcp_mtu_probing: somebody changed it to 2", "1 left\ncode 1 2 1", "code 0 0"],
    );
}

#[test]
fn at_least_leaves_more_as_it_is() {
    expect(
        "sysctl -qw net.core.somaxconn=60000 net.ipv4.tcp_wmem='4096 65536 1000000'\n\
         ./apply.sh pop --only net --state $S; sysctl -n net.core.somaxconn; sysctl -n net.ipv4.tcp_wmem | tr '\\t' ' '",
        &["kept    net.core.somaxconn: 60000 is more than 16384", "\n60000\n", "\n4096 65536 16777216\n"],
    );
}

#[test]
fn reverting_without_a_record_says_so() {
    expect("./revert.sh --state $S && [[ ! -e $S ]]", &["nothing is recorded in"]);
}

#[test]
fn a_record_of_elsewhere_or_of_others_is_not_used() {
    expect(
        "mkdir $S; printf 'boot\\t%s\\nnetns\\tnet:[1]\\nbefore\\tsysctl\\tnet.ipv4.tcp_sack\\t0\\n' \
         $(cat /proc/sys/kernel/random/boot_id) >$S/record; ./revert.sh --state $S; echo code $?\n\
         sed -i s/^netns.*/garbage/ $S/record; ./revert.sh --state $S; echo code $?\n\
         printf 'boot\\tof-yesterday\\nnetns\\tx\\nbefore\\tsysctl\\tnet.ipv4.tcp_sack\\t0\\n' >$S/record\n\
         ./revert.sh --state $S; echo code $?; mkdir $S; chmod o+w $S; ./apply.sh pop --only net --state $S; echo code $?\n\
         sysctl net.ipv4.tcp_sack",
        &[
            "recorded in another network namespace",
            "line not understood",
            "of an earlier boot",
            "nobody else can write to",
            "net.ipv4.tcp_sack = 1",
        ],
    );
}

#[test]
fn a_record_reaches_no_other_places() {
    expect(
        "mkdir $S; echo untouched >$T/file; netns=$(readlink /proc/self/ns/net)\n\
         printf 'boot\\t%s\\nnetns\\t%s\\nbefore\\tnumber\\t%s\\t0\\nbefore\\tsysctl\\t../../tmp/x\\t0\\nbefore\\tshell\\tid\\t0\\n' \
         $(cat /proc/sys/kernel/random/boot_id) $netns $T/file >$S/record\n\
         ./revert.sh --state $S; echo code $?; cat $T/file",
        &["not a place that this script touches", "unknown kind shell", "3 left\ncode 1", "untouched"],
    );
}

#[test]
fn bad_profiles_and_options_are_named() {
    expect(
        "try() { printf \"$1\\n\" >$T/conf; ./apply.sh pop --conf $T/conf --only net --state $S; echo code $?; }\n\
         try 'net.ipv4.tcp_sack=0'; try 'net.ipv4/../../x = 1'; try 'dev.tty.x = 1'; try '# rule: at most'\n\
         try 'net.ipv4.tcp_sack = $(id)'; ./apply.sh pop --with tcp_nothing --only net; ./apply.sh pop gateway\n\
         ./apply.sh pop --with mss-clamp=90 --only net; ./apply.sh --only net; ./apply.sh pop --only vm; ./apply.sh pop --state\n\
         ./nic.sh plan --cores 3-1; ./nic.sh plan --devices 'a/b'; [[ ! -e $S ]]",
        &[
            "conf:1: not a setting: net.ipv4.tcp_sack=0",
            "conf:1: not a setting: net.ipv4/../../x",
            "keys begin with net.",
            "unknown rule \"at most\"",
            "--with tcp_nothing: no such option\n  remedy: known here are: mss-clamp",
            "--with mss-clamp=90: not a number of bytes",
            "--only vm: unknown",
            "--state: needs a value",
            "3-1 runs backwards",
            "not the name of a device",
        ],
    );
}

#[test]
fn the_mss_clamp_comes_changes_and_goes() {
    if !has("nft") {
        eprintln!("skipped: nft is not installed");
        return;
    }
    expect(
        "nft list tables >/dev/null 2>&1 || { echo 'skipped: no nftables here: size set 1300 IDENTICAL mine'; exit 0; }\n\
         nft add table inet other; snap >$T/before; ./apply.sh pop --only net --with mss-clamp --state $S >/dev/null\n\
         ./apply.sh pop --only net --with mss-clamp=1300 --state $S; nft list ruleset; ./revert.sh --state $S\n\
         snap >$T/after; cmp $T/before $T/after && echo IDENTICAL\n\
         nft add table inet trunkline_mss; ./apply.sh pop --only net --with mss-clamp --state $S | grep mss | sed 's/$/ mine/'",
        &["size set 1300", "IDENTICAL", "mine"],
    );
}

#[test]
fn queues_follow_the_cores_and_go_back() {
    // /sys shows the devices of the namespace in which it was mounted.
    expect(
        "unshare --mount bash -c '\n\
         mount -t sysfs sysfs /sys && ip tuntap add dev tl0 mode tap 2>/dev/null || { echo skipped: no tap device: set back none; exit 0; }\n\
         q=/sys/class/net/tl0/queues/rx-0; cat $q/rps_cpus $q/rps_flow_cnt >$T/before\n\
         ./apply.sh pop --only net --devices tl0,none --cores 0,1 --state $S; ./revert.sh --state $S\n\
         cat $q/rps_cpus $q/rps_flow_cnt | cmp - $T/before'",
        &["set", "back", "none"],
    );
}

#[test]
fn without_a_sysfs_of_its_own_a_namespace_leaves_the_machines_queues_alone() {
    // Devices of the machine are what /sys shows here, and none of them is in this namespace.
    expect("./nic.sh plan --only net --devices $(ls /sys/class/net | head -n 1),tl9", &["tl9: no such device"]);
    expect("./nic.sh plan --only net; true", &["no NIC in this network namespace"]);
}

#[test]
fn units_are_accepted_by_systemd() {
    if !has("systemd-analyze") {
        eprintln!("skipped: systemd-analyze is not installed");
        return;
    }
    let directory = scratch();
    let units = root().join("tuning/systemd");
    let place = |path: &str| -> PathBuf { directory.path().join(path) };
    for folder in ["etc/systemd/system", "usr/local/bin", "usr/local/lib/trunkline/tuning", "bin"] {
        fs::create_dir_all(place(folder)).expect("there is room");
    }
    let names = ["trunkline-pop.service", "trunkline-gateway.service", "trunkline-tuning@.service"];
    for name in names {
        fs::copy(units.join(name), place("etc/systemd/system").join(name)).expect("there is room");
    }
    // Only that the programs are there and may be run is looked at.
    let programs = ["usr/local/bin/trunkline", "bin/kill"].map(place);
    let scripts = ["apply.sh", "revert.sh"].map(|name| place("usr/local/lib/trunkline/tuning").join(name));
    for program in programs.iter().chain(&scripts) {
        fs::copy("/bin/true", program).expect("there is room");
    }
    for target in ["basic", "shutdown", "sysinit", "network-online"] {
        fs::write(place("etc/systemd/system").join(format!("{target}.target")), "[Unit]\n").expect("there is room");
    }
    let output = Command::new("systemd-analyze")
        .args(["verify", "--man=no", "--root"])
        .arg(directory.path())
        .args(["trunkline-pop.service", "trunkline-gateway.service", "trunkline-tuning@pop.service"])
        .output()
        .expect("it is installed");
    let text = text_of(&output);
    if text.contains("unrecognized option") {
        eprintln!("skipped: this systemd-analyze is too old: {text}");
        return;
    }
    let mistakes: Vec<&str> = text.lines().filter(|line| line.contains("trunkline-")).collect();
    assert!(mistakes.is_empty(), "{text}");
}

/// A command under a seccomp profile: exit code and output. None, with the reason printed, where that cannot be.
fn under(profile: &Path, command: &[&str]) -> Option<(bool, String)> {
    let output =
        Command::new("python3").arg(root().join("tuning/seccomp/under.py")).arg(profile).args(command).output();
    match output {
        Ok(output) if output.status.code() != Some(2) => Some((output.status.success(), text_of(&output))),
        Ok(output) => {
            eprintln!("skipped: {}", text_of(&output));
            None
        }
        Err(error) => {
            eprintln!("skipped: python3: {error}");
            None
        }
    }
}

/// The demo under a seccomp profile.
fn demo_under(profile: &Path) -> Option<(bool, String)> {
    under(profile, &[env!("CARGO_BIN_EXE_trunkline"), "demo"])
}

#[test]
fn no_file_is_made_or_emptied_under_the_seccomp_profile() {
    let (directory, profile) = (scratch(), root().join("tuning/seccomp/trunkline.json"));
    let file = directory.path().join("file");
    fs::write(&file, "untouched").expect("there is room");
    let name = file.to_str().expect("its name is text");
    let Some((good, text)) = under(&profile, &["cat", name]) else { return };
    assert!(good && text.contains("untouched"), "{text}");
    // One truncates, one makes a file.
    let (source, new) = (root().join("Cargo.toml"), directory.path().join("new"));
    let source = source.to_str().expect("its name is text");
    for target in [name, new.to_str().expect("its name is text")] {
        let (good, text) = under(&profile, &["cp", source, target]).expect("it ran before");
        assert!(!good, "{text}");
    }
    assert_eq!(fs::read_to_string(&file).expect("our own file"), "untouched");
    assert!(!new.exists());
}

#[test]
fn requests_are_served_under_the_seccomp_profile() {
    // Workers do without these, so nothing but this would tell.
    let text = read("tuning/seccomp/trunkline.json");
    for call in ["\"sched_getattr\"", "\"sched_setattr\""] {
        assert!(text.contains(call), "{call}");
    }
    let Some((good, text)) = demo_under(&root().join("tuning/seccomp/trunkline.json")) else { return };
    assert!(good && text.contains("200, 123 bytes"), "{text}");
}

#[test]
fn the_profile_without_io_uring_is_refused_with_a_remedy() {
    let directory = scratch();
    let profile = directory.path().join("none.json");
    let text = read("tuning/seccomp/trunkline.json");
    for call in ["\"io_uring_enter\"", "\"io_uring_register\"", "\"io_uring_setup\""] {
        assert!(text.contains(call), "{call}");
    }
    fs::write(&profile, text.replace("\"io_uring_setup\"", "\"pause\"")).expect("there is room");
    let Some((good, text)) = demo_under(&profile) else { return };
    assert!(!good && text.contains("refused io_uring") && text.contains("Remedy"), "{text}");
}
