#!/usr/bin/env bash
# Everything that has to pass, part by part, each with its time. A part that ends in `N passed, N failed` counts so many,
# any other counts 1. The last line is the sum.
set -u
cd "$(dirname "$0")/.."
mkdir -p build/ci
passed=0 failed=0 broken=()

part() { # NAME COMMAND...
    local name=$1 log=build/ci/$1.log started=$SECONDS code ok bad
    shift
    printf '\n== %s: %s\n' "$name" "$*"
    "$@" 2>&1 | tee "$log"
    code=${PIPESTATUS[0]}
    read -r ok bad <<< "$(sed -n 's/^\([0-9]*\) passed, \([0-9]*\) failed$/\1 \2/p' "$log" | tail -n 1)"
    if [ -z "$ok" ]; then ok=$((code == 0)) bad=$((code != 0)); fi
    if [ "$code" -ne 0 ] && [ "$bad" -eq 0 ]; then bad=1; fi
    passed=$((passed + ok)) failed=$((failed + bad))
    [ "$bad" -eq 0 ] || broken+=("$name")
    printf '== %s: %d passed, %d failed, %d s\n' "$name" "$ok" "$bad" $((SECONDS - started))
}

jobs=-j$(nproc)
part lint make -s lint
part clang make -s "$jobs" clang
part asan make -s "$jobs" asan
part mpich make -s "$jobs" mpich
part tsan make -s "$jobs" tsan
part ref env SKYMOE_KERNELS=ref make -s "$jobs" test
part avx2 env SKYMOE_KERNELS=avx2 make -s "$jobs" test
part ranks env FAULT_RUNS=0 SKYMOE=build/skymoe tests/run.sh build/tests/test_ranks # every place, where `make test` tries some
part old make -s "$jobs" old
part golden /usr/bin/python3 tools/golden.py --compare tests/golden
part fuzz make -s "$jobs" fuzz
part demo env DEMO_DIR=build/ci/demo make -s demo DEMO_SIZE=tiny

# What failed once more, where it is read first.
for name in "${broken[@]}"; do
    printf '\nfailed in %s:\n' "$name"
    { grep -a -A 45 ' [1-9][0-9]* failed.*s)$' "build/ci/$name.log" || cat "build/ci/$name.log"; } | tail -n 60
done

printf '\nall parts in %d min %02d s\n' $((SECONDS / 60)) $((SECONDS % 60))
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
