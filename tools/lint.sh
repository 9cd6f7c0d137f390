#!/usr/bin/env bash
# Rules that no compiler checks. Each prints the lines that break it; the last line is `N passed, N failed`.
set -u
cd "$(dirname "$0")/.."
export LC_ALL=C.UTF-8
shopt -s lastpipe # so that `rule` at the end of a pipe counts here

# Who may include whom: a folder of src/ and what it may include besides itself.
includes='
base
data       base
kernels    base
comm       base kernels
model      base kernels comm
parallel   base kernels comm model
plan       base kernels comm model parallel
checkpoint base kernels comm model parallel
train      base data kernels comm model parallel checkpoint eval
quant      base kernels model checkpoint
eval       base data kernels comm model checkpoint
serve      base data kernels comm model checkpoint quant eval
cli        base data kernels comm model parallel plan checkpoint train quant eval serve
'
# Where each header from elsewhere may be included; the C library and POSIX are free.
third_party='
dnnl.h                      src/kernels/dnnl/
omp.h                       src/kernels/
immintrin.h                 src/kernels/x86/
cjson/cJSON.h               src/base/json.h
xxhash.h                    src/base/output.c
getopt.h                    src/base/setting.c
histedit.h                  src/cli/line.c
sentencepiece_processor.h   src/data/
sentencepiece_trainer.h     src/data/
mpi.h                       src/comm/mpi.c
nccl.h                      src/comm/nccl
'
free_headers='assert|complex|ctype|errno|fenv|float|inttypes|limits|locale|math|setjmp|signal|stdarg|stdatomic|stdbool|stddef|stdint|stdio|stdlib|string|time|dirent|fcntl|glob|poll|pthread|sched|spawn|strings|termios|unistd|sys/[a-z]*|netinet/[a-z]*|arpa/[a-z]*|cpuid'

files() { git ls-files -co --exclude-standard -- "$@" | while read -r f; do [ -f "$f" ] && echo "$f"; done; }
source_files() { files src | grep -E '\.(c|h|cc|inc|cu|cuh)$'; }

passed=0 failed=0
rule() { # NAME, and on stdin the lines that break it
    local found
    found=$(cat)
    if [ -z "$found" ]; then
        passed=$((passed + 1))
    else
        failed=$((failed + 1))
        printf '%s:\n' "$1"
        printf '%s\n' "$found" | head -n 40 | sed 's/^/    /'
    fi
}

# grep over code with comments and the insides of string literals taken out, keeping file:line.
code() { # PATTERN FILE...
    local pattern=$1
    shift
    [ $# -eq 0 ] && return
    awk '
        FNR == 1 { comment = 0 }
        {
            line = $0
            gsub(/\\./, "", line)
            gsub(/"[^"]*"/, "\"\"", line)
            while (1) {
                if (comment) {
                    end = index(line, "*/")
                    if (!end) { line = ""; break }
                    line = substr(line, end + 2)
                    comment = 0
                }
                start = index(line, "/*"); slashes = index(line, "//")
                if (slashes && (!start || slashes < start)) { line = substr(line, 1, slashes - 1); break }
                if (!start) break
                rest = substr(line, start + 2)
                line = substr(line, 1, start - 1) " "
                end = index(rest, "*/")
                if (end) line = line substr(rest, end + 2)
                else { comment = 1; break }
            }
            if (line ~ /[^ ]/) print FILENAME ":" FNR ": " line
        }' "$@" | grep -E "^[^:]*:[0-9]*: .*($pattern)"
}
outside() { grep -v -E "^($1)"; }

mapfile -t sources < <(source_files)
mapfile -t tests < <(files tests tools bench | grep -E '\.(c|h|cc)$')

# ---- who includes whom ----

grep -nE '^ *# *include "' "${sources[@]}" | awk -v table="$includes" '
    BEGIN {
        n = split(table, row, "\n")
        for (i = 1; i <= n; i++) {
            m = split(row[i], word, " ")
            known[word[1]] = 1
            for (j = 1; j <= m; j++) allowed[word[1], word[j]] = 1
        }
    }
    {
        split($0, part, ":")
        split(part[1], folder, "/")
        match($0, /"[^"]*"/)
        target = substr($0, RSTART + 1, RLENGTH - 2)
        if (split(target, to, "/") < 2) print part[1] ":" part[2] ": \"" target "\" has no folder in its name"
        else if (!(folder[2] in known)) print part[1] ": the folder " folder[2] " is not in the table of tools/lint.sh"
        else if (!((folder[2], to[1]) in allowed)) print part[1] ":" part[2] ": " folder[2] " may not include " target
    }' | rule 'who includes whom'

grep -nE '^ *# *include <' "${sources[@]}" | awk -v table="$third_party" -v free="^($free_headers)\\\\.h$" '
    BEGIN {
        n = split(table, row, "\n")
        for (i = 1; i <= n; i++) if (split(row[i], word, " ") == 2) place[word[1]] = word[2]
    }
    {
        split($0, part, ":")
        match($0, /<[^>]*>/)
        header = substr($0, RSTART + 1, RLENGTH - 2)
        if (header in place) {
            if (index(part[1], place[header]) != 1) print part[1] ":" part[2] ": <" header "> belongs in " place[header]
        } else if (header !~ free && part[1] !~ /\.cc$/) print part[1] ":" part[2] ": <" header "> is not in the table of tools/lint.sh"
    }' | rule 'each header from elsewhere in one place'

# ---- what is allowed where ----

code '# *pragma  *omp' "${sources[@]}" | outside src/kernels/ | rule '#pragma omp only in src/kernels/'
code '\<(printf|puts|putchar|perror)  *\(|\<(printf|puts|putchar|perror)\(|\<stdout\>|\<stderr\>' "${sources[@]}" |
    outside 'src/cli/|src/base/log\.c|src/base/status\.c' | rule 'prints only in src/cli/ and src/base/log.c'
grep -nE '\<fopen\([^)]*, *"[wa+]' "${sources[@]}" | rule 'files are written through struct output'
code '\<(write|pwrite|fsync|rename|creat|mkstemp|ftruncate)\(' "${sources[@]}" | outside 'src/base/output\.c|src/comm/alive\.c' |
    rule 'files are written through struct output: system calls'
# Tensors are `el *` and `acc *`, which are void: reading one takes a cast. context.h does so for host copies.
code '\(\((const  *)?(float|double|uint16_t) *\*\)[^()]*\)\[|\*\((const  *)?(float|double|uint16_t) *\*\)' \
    $(files src/model src/parallel src/train src/eval) | outside 'src/model/context\.h' |
    rule 'tensor memory is read and written by kernels only'
code '\<(strcpy|strcat|strncpy|strncat|sprintf|vsprintf|gets|strtok|atoi|atol|atoll|atof|alloca|rand|srand|random|system|popen|tmpnam|mktemp|setjmp|longjmp|asctime|ctime|gmtime|localtime|strerror_r|fmax_nan)\(' \
    "${sources[@]}" "${tests[@]}" | rule 'functions that are not used here'
code '\<goto\>|\<typedef  *(struct|enum|union)\>' "${sources[@]}" | rule 'no goto, no typedef of a struct'
code '\<exit\(|\<_exit\(|\<abort\(' "${sources[@]}" | outside 'src/cli/(main|launch)\.c|src/base/(status|log)\.c|src/comm/mpi\.c' |
    rule 'only main ends the program'
code '\<(omp_[a-z_]*)\(' "${sources[@]}" | outside src/kernels/ | rule 'OpenMP calls only in src/kernels/'

# ---- the shape of files ----

wc -l "${sources[@]}" "${tests[@]}" | awk '$2 != "total" && $1 > ($2 ~ /^tests/ ? 600 : 500) { print $2, $1 }' | while read -r f n; do
    sed '/^ *$/q; /^#include/q' "$f" | grep -qi 'one file' || echo "$f: $n lines, and its first comment does not say why it is one file"
done | rule 'files of at most 500 lines (tests 600)'

mapfile -t texts < <(files | grep -v -E '^tests/(golden|fuzz/corpus|data)/|\.(png|jpg|gif|ico|safetensors|bin|idx|model|npy)$')
mapfile -t code_texts < <(printf '%s\n' "${sources[@]}" "${tests[@]}")
grep -nP '\t' "${code_texts[@]}" | rule 'no tabs'
grep -nP '^.{121,}' "${code_texts[@]}" | cut -c 1-160 | rule 'lines of at most 120 characters'
grep -nIE '[[:space:]]$' "${texts[@]}" | rule 'no spaces at the end of a line'
for f in "${texts[@]}"; do
    [ ! -s "$f" ] || [ -z "$(tail -c 1 "$f")" ] || echo "$f"
done | rule 'every file ends with a newline'
grep -nE '\<(TODO|FIXME|XXX)\>' "${code_texts[@]}" | rule 'nothing left to do in the code'

for f in $(printf '%s\n' "${sources[@]}" | grep '\.h$'); do
    guard=$(echo "${f#src/}" | tr 'a-z/.' 'A-Z__')
    grep -q "^#ifndef SKYMOE_$guard$" "$f" || echo "$f: its guard is not SKYMOE_$guard"
    head -n 1 "$f" | grep -q '^//' || echo "$f: does not begin by saying what it is"
    gcc -std=gnu11 -fsyntax-only -Wall -Wextra -Wno-psabi -Isrc -x c "$f" 2>&1 | grep -E 'error|warning' | grep -v 'pragma once'
done | rule 'every header compiles alone, is guarded and says what it is'

for f in $(files | grep -E '\.sh$|^bootstrap$|^\.ci/run$'); do
    [ -x "$f" ] || echo "$f: is not executable"
    bash -n "$f" 2>&1
done | rule 'scripts run'

echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
