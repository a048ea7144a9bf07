#!/bin/sh
# Lists the numbered MUSTs of docs/MMTP.md that no test cites, and citations of MUSTs that do not exist.
# Prints nothing and exits 0 when there are none of either.
set -eu
cd "$(dirname "$0")/.."

stated=$(grep --only-matching --extended-regexp '^- \*\*\[M [0-9.]+-[0-9]+\]' docs/MMTP.md | sed 's/^[^[]*//' | sort)
twice=$(printf '%s\n' "$stated" | uniq --repeated)
# A citation counts in tests/ and, in src/, behind the line that begins a file's tests.
cited=$({
    find src -name '*.rs' -exec awk 'FNR == 1 { tests = 0 } /^#\[cfg\(test\)\]/ { tests = 1 } tests' {} +
    find src \( -name simulation.rs -o -name tests.rs \) -exec cat {} +
    find tests -path tests/fuzz -prune -o \( -name '*.rs' -o -name '*.hex' \) -exec cat {} +
} | grep --only-matching --extended-regexp '\[M [0-9.]+-[0-9]+\]' | sort --unique)

status=0
report() { # what, list
    if [ -n "$2" ]; then
        printf '%s\n' "$2" | sed "s/^/$1: /"
        status=1
    fi
}
lists=$(mktemp --directory)
trap 'rm --recursive --force "$lists"' EXIT
printf '%s\n' "$stated" | uniq > "$lists/stated"
printf '%s\n' "$cited" > "$lists/cited"
report 'stated twice' "$twice"
report 'no test cites' "$(comm -23 "$lists/stated" "$lists/cited")"
report 'cited but not stated' "$(comm -13 "$lists/stated" "$lists/cited")"
exit $status
