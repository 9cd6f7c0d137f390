#!/usr/bin/env bash
# Breaks the code on purpose, one entry of `list` at a time, in a copy of the tree, and sees the named tests fail.
# Arguments: only entries whose text has one of these words. A mutation that no longer applies or does not compile is a
# failure too: it proves nothing. The last line is `N passed, N failed`.
set -u
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
out=${OUT:-$root/build}
export SKYMOE=${SKYMOE:-$out/skymoe} # what tests call as a program stays whole
jobs=$(nproc)
work=$(mktemp -d "${TMPDIR:-/tmp}/skymoe-mutations-XXXXXX") || exit 1
trap 'rm -rf "$work"' EXIT

# ---- the list ----

names=() files=() tests=() olds=() news=()
n=-1 last=
while IFS= read -r line; do
    case $line in
    "== "*) n=$((n + 1)) names[n]=${line#== } files[n]= tests[n]= olds[n]= news[n]= last= ;;
    "file "*) files[n]=${line#file } ;;
    "test "*) tests[n]=${line#test } ;;
    "- "*) [ "$last" = old ] && olds[n]+=$'\n'; olds[n]+=${line#- } last=old ;;
    "+ "*) [ "$last" = new ] && news[n]+=$'\n'; news[n]+=${line#+ } last=new ;;
    esac
done < "$here/list"
total=$((n + 1))

chosen() { # INDEX
    [ ${#words[@]} -eq 0 ] && return
    local word
    for word in "${words[@]}"; do
        [[ "${names[$1]} ${files[$1]} ${tests[$1]}" == *"$word"* ]] && return
    done
    return 1
}
words=("$@")

# ---- an unbroken copy, built, whose tests pass ----

tree=$work/tree
mkdir -p "$tree/build/tests"
tar -C "$root" --exclude=./build --exclude=./.git -cf - . | tar -C "$tree" -xf -
[ -d "$out/src" ] && cp -a "$out/src" "$tree/build/"
[ -d "$out/tests" ] && find "$out/tests" -maxdepth 1 -name '*.[do]' -exec cp -a -t "$tree/build/tests" {} +
find "$tree/build" -name '*.d' -exec sed -i "s|^$out/|build/|" {} + # what depends on what, under the copy's names

build() { # TREE LOG PROGRAM...
    local at=$1 log=$2
    shift 2
    make -C "$at" -j"$jobs" OUT=build "${@/#/build/tests/}" > "$log" 2>&1
}
run() { # TREE LOG PROGRAM
    (cd "$1" && timeout --kill-after=10 300 "build/tests/$3") > "$2" 2>&1
}

all=$(for i in $(seq 0 $((total - 1))); do chosen "$i" && echo "${tests[i]}"; done | tr ' ' '\n' | sort -u)
started=$SECONDS
# shellcheck disable=SC2086
if ! build "$tree" "$work/log" $all; then
    tail -n 20 "$work/log"
    echo "the unbroken tree does not build"
    echo "0 passed, 1 failed"
    exit 1
fi
for program in $all; do
    run "$tree" "$work/log" "$program" && continue
    tail -n 20 "$work/log"
    echo "$program fails without any mutation"
    echo "0 passed, 1 failed"
    exit 1
done
echo "built, and passing: $(echo $all) ($((SECONDS - started)) s)"

# ---- one mutation ----

problem= caught=
mutate() { # INDEX: sets problem, or caught
    local i=$1 try=$work/try text rest program
    problem= caught=
    rm -rf "$try"
    cp -a "$tree" "$try"
    [ -f "$try/${files[i]}" ] || { problem="there is no ${files[i]}"; return; }
    text=$(cat "$try/${files[i]}" && echo x) text=${text%x}
    rest=${text#*"${olds[i]}"}
    [ "$rest" != "$text" ] || { problem="its text is not in ${files[i]}"; return; }
    [ "${rest#*"${olds[i]}"}" = "$rest" ] || { problem="its text is in ${files[i]} more than once"; return; }
    printf '%s' "${text%%"${olds[i]}"*}${news[i]}$rest" > "$try/${files[i]}"
    # shellcheck disable=SC2086
    if ! build "$try" "$work/log" ${tests[i]}; then
        problem="it does not compile: $(grep -m1 'error' "$work/log")"
        return
    fi
    for program in ${tests[i]}; do
        if run "$try" "$work/log" "$program"; then
            problem="$program does not notice"
            return
        fi
        caught+=" $program"
        rest=$(grep -a -m1 -o 'FAILED  \] [a-z_0-9]*' "$work/log" | sed 's/.* //')
        [ -z "$rest" ] || caught+=":$rest"
    done
}

passed=0 failed=0
for i in $(seq 0 $((total - 1))); do
    chosen "$i" || continue
    begun=$SECONDS
    mutate "$i"
    if [ -z "$problem" ]; then
        passed=$((passed + 1))
        printf 'caught  %s (%s, %d s)\n' "${names[i]}" "${caught# }" $((SECONDS - begun))
    else
        failed=$((failed + 1))
        printf 'MISSED  %s: %s\n' "${names[i]}" "$problem"
    fi
done
echo "$((SECONDS - started)) s"
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
