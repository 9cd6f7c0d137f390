#!/usr/bin/env bash
# Runs the fuzz programs in the folder $1 for FUZZ_SECONDS each on the seeds in tests/fuzz/corpus/NAME. What crashed,
# leaked or hung is left in $1/NAME-crash-*. The last line is `N passed, N failed`.
set -u
cd "$(dirname "$0")/../.."
seconds=${FUZZ_SECONDS:-30}
export ASAN_OPTIONS=${ASAN_OPTIONS:-allocator_may_return_null=1}
export LSAN_OPTIONS=${LSAN_OPTIONS:-suppressions=$PWD/tests/leaks.txt:print_suppressions=0}
export UBSAN_OPTIONS=${UBSAN_OPTIONS:-print_stacktrace=1}

passed=0 failed=0
for source in tests/fuzz/fuzz_*.c; do
    name=$(basename "$source" .c) && name=${name#fuzz_}
    seeds=tests/fuzz/corpus/$name
    found=$1/$name-found log=$1/$name.log # what the fuzzer finds interesting stays out of the seeds
    mkdir -p "$found"
    if [ ! -d "$seeds" ]; then
        echo "fuzz $name: no seeds in $seeds" && failed=$((failed + 1))
        continue
    fi
    if "$1/fuzz_$name" -max_total_time="$seconds" -timeout=20 -rss_limit_mb=4096 -max_len=65536 -print_final_stats=1 \
        -artifact_prefix="$1/$name-crash-" "$found" "$seeds" > "$log" 2>&1; then
        runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
        echo "fuzz $name: $runs inputs in $seconds s, nothing found" && passed=$((passed + 1))
    else
        echo "fuzz $name: FAILED" && failed=$((failed + 1))
        grep -v '^#' "$log" | tail -n 40 | cut -c 1-300 | sed 's/^/    /'
    fi
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
