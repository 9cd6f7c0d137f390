#!/usr/bin/env bash
# Runs the test programs named as arguments and counts their cmocka tests. A program's whole output goes to PROGRAM.log;
# it is shown when something failed. The last line is `N passed, N failed`.
set -u
cd "$(dirname "$0")/.."
export GOMP_SPINCOUNT=${GOMP_SPINCOUNT:-10000} # as main.c does, and why
export ASAN_OPTIONS=${ASAN_OPTIONS:-detect_leaks=1:detect_stack_use_after_return=1:allocator_may_return_null=1}
export LSAN_OPTIONS=${LSAN_OPTIONS:-suppressions=$PWD/tests/leaks.txt:print_suppressions=0}
export UBSAN_OPTIONS=${UBSAN_OPTIONS:-print_stacktrace=1}

count() { grep -ac -- "$1" "$2"; }

passed=0 failed=0
for program in "$@"; do
    log=$program.log
    started=$(date +%s.%N)
    timeout --kill-after=10 "${TEST_TIMEOUT:-900}" "$program" > "$log" 2>&1
    code=$?
    seconds=$(awk -v a="$started" -v b="$(date +%s.%N)" 'BEGIN { printf "%.1f", b - a }')
    run=$(count '\[ RUN      \]' "$log") ok=$(count '\[       OK \]' "$log") skipped=$(count '\[  SKIPPED \]' "$log")
    bad=$((run - ok - skipped)) # a test that crashed has begun and has no end
    if [ "$bad" -le 0 ] && { [ "$code" -ne 0 ] || [ "$run" -eq 0 ]; }; then bad=1; fi
    printf '%-24s %4d passed, %d failed%s  (%s s)\n' "$(basename "$program")" "$ok" "$bad" \
        "$([ "$skipped" -eq 0 ] || echo ", $skipped skipped")" "$seconds"
    if [ "$bad" -gt 0 ]; then
        [ "$code" -ne 124 ] || echo "    stopped after ${TEST_TIMEOUT:-900} s"
        grep -a -v -e '\[ RUN      \]' -e '\[       OK \]' "$log" | tail -n 40 | cut -c 1-300 | sed 's/^/    /'
        echo "    (exit code $code; everything: $log)"
    fi
    passed=$((passed + ok)) failed=$((failed + bad))
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
