#!/usr/bin/env bash
# Runs the fuzz programs in the folder $1, as many at a time as there are processors: first over the seeds in
# tests/fuzz/corpus/NAME, which must reach 80 % of the parser's lines, then for FUZZ_SECONDS on changed inputs. What
# crashed, leaked or hung is left in $1/NAME-crash-*. The last line is `N passed, N failed`.
set -u
cd "$(dirname "$0")/../.."
out=$1
seconds=${FUZZ_SECONDS:-30} least=80
export ASAN_OPTIONS=${ASAN_OPTIONS:-allocator_may_return_null=1}
export LSAN_OPTIONS=${LSAN_OPTIONS:-suppressions=$PWD/tests/leaks.txt:print_suppressions=0}
export UBSAN_OPTIONS=${UBSAN_OPTIONS:-print_stacktrace=1}

# What each program is about: a source file, and which of its functions are the parser (none: all of them).
parsers='
alive      src/comm/alive.c              read_file|alive_read
chat       src/data/chat_folder.c
checksums  src/checkpoint/verify.c
cluster    src/plan/cluster.c
config     src/model/config.c
generation src/eval/generate.c          add_end|read_ends|end_ids_read
ids        src/cli/ids.c
idx        src/data/dataset.c           dataset_parse_idx|parse_header|check_.*|dataset_document_.*|dataset_read|i.._at
model      src/checkpoint/folder.c
json       src/base/json.c
metrics    src/cli/report_data.c
metrics    src/base/metrics.c           row_step|keep_rows|rewrite_rows|cut_rows
routing    src/train/trace.c            list_of|read_choices|read_line|next_line|routing_read
safetensors src/checkpoint/safetensors.c
setting    src/base/setting.c           next_word|give_words|read_line|read_lines|read_text|settings_read|assign|give
state      src/checkpoint/checkpoint.c  read_numbers|read_state|training_state_parse|latest_named|checkpoint_latest|step_of
summary    src/cli/report_summary.c
tasks      src/eval/tasks.c
text       src/data/corpus.c
tokenizer  src/data/tokenizer_check.c
'

# Lines of FILE (of FUNCTIONS in it) that NAME's seeds run through: `covered all`.
lines_covered() { # NAME FILE FUNCTIONS
    llvm-cov-14 report "$out/fuzz_$1" -instr-profile="$out/$1.profdata" -show-functions "$2" | awk -v wanted="^($3)$" '
        NF == 10 && $2 ~ /^[0-9]+$/ && $1 != "TOTAL" {
            name = $1
            sub(/.*:/, "", name) # static functions: FILE:NAME
            if (wanted == "^()$" || name ~ wanted) { all += $5; missed += $6 }
        }
        END { print all - missed, all + 0 }'
}

coverage() { # NAME
    local name file functions covered all percent good=0
    while read -r name file functions; do
        [ "$name" = "$1" ] || continue
        read -r covered all < <(lines_covered "$name" "$file" "${functions:-}")
        percent=$((all ? 100 * covered / all : 0))
        echo "fuzz $name: its seeds reach $percent % ($covered of $all lines) of $file"
        [ "$percent" -ge "$least" ] || good=1
    done <<< "$parsers"
    return "$good"
}

fuzz() { # NAME
    local name=$1 seeds=tests/fuzz/corpus/$1 found=$out/$1-found log=$out/$1.log
    local options="-timeout=20 -rss_limit_mb=4096 -max_len=65536 -artifact_prefix=$out/$1-crash-"
    mkdir -p "$found" # what the fuzzer finds interesting stays out of the seeds
    [ -d "$seeds" ] || { echo "fuzz $name: no seeds in $seeds"; return 1; }
    # shellcheck disable=SC2086
    if ! LLVM_PROFILE_FILE=$out/$name.profraw "$out/fuzz_$name" $options -runs=0 "$seeds" > "$log" 2>&1 ||
        ! llvm-profdata-14 merge -o "$out/$name.profdata" "$out/$name.profraw" >> "$log" 2>&1 ||
        ! LLVM_PROFILE_FILE=/dev/null "$out/fuzz_$name" $options -max_total_time="$seconds" -print_final_stats=1 \
            "$found" "$seeds" > "$log" 2>&1; then
        echo "fuzz $name: FAILED"
        grep -a -v '^#' "$log" | tail -n 40 | cut -c 1-300 | sed 's/^/    /'
        return 1
    fi
    echo "fuzz $name: $(sed -n 's/^stat::number_of_executed_units: *//p' "$log") inputs in $seconds s, nothing found"
    coverage "$name" || { echo "fuzz $name: FAILED, less than $least % (add seeds)"; return 1; }
}

names=() passed=0 failed=0
for source in tests/fuzz/fuzz_*.c; do
    name=$(basename "$source" .c) && name=${name#fuzz_}
    [ $# -eq 1 ] || [[ " ${*:2} " == *" $name "* ]] || continue
    grep -q "^$name " <<< "$parsers" || { echo "fuzz $name: is not in the table of tests/fuzz/run.sh"; failed=$((failed + 1)); }
    names+=("$name")
done
for name in "${names[@]}"; do
    while [ "$(jobs -rp | wc -l)" -ge "${FUZZ_JOBS:-$(nproc)}" ]; do wait -n; done
    { fuzz "$name"; echo $? > "$out/$name.code"; } > "$out/$name.said" 2>&1 &
done
wait
for name in "${names[@]}"; do
    cat "$out/$name.said"
    if [ "$(cat "$out/$name.code")" -eq 0 ]; then passed=$((passed + 1)); else failed=$((failed + 1)); fi
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
