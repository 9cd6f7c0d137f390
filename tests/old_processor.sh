#!/usr/bin/env bash
# The program on processors without AVX-512 and without AVX2, as qemu-user plays them: no instruction is used that they
# lack, oneDNN works there too, and what is computed is what this machine computes at the same level. The first argument
# is the folder of the build. The last line is `N passed, N failed`.
set -u
cd "$(dirname "$0")/.."
out=$1
export GOMP_SPINCOUNT=1000 # or the program would start itself again to set it, outside of qemu
export OMP_NUM_THREADS=2
unset SKYMOE_KERNELS
work=$(mktemp -d "${TMPDIR:-/tmp}/skymoe-old-XXXXXX") || exit 1
trap 'rm -rf "$work"' EXIT
passed=0 failed=0

expect() { # NAME CODE COMMAND...: what it prints goes to $work/NAME
    local name=$1 wanted=$2 code started=$SECONDS
    shift 2
    "$@" > "$work/$name" 2> "$work/$name.err"
    code=$?
    if [ "$code" -eq "$wanted" ]; then
        passed=$((passed + 1))
        echo "$name: ok ($((SECONDS - started)) s)"
    else
        failed=$((failed + 1))
        echo "$name: exit code $code, expected $wanted"
        grep -a -v 'TCG doesn.t support' "$work/$name.err" | tail -n 20 | sed 's/^/    /'
    fi
}
same() { # NAME NAME
    if cmp -s "$work/$1" "$work/$2"; then passed=$((passed + 1)); else
        failed=$((failed + 1))
        echo "$1 and $2 differ:" && diff "$work/$1" "$work/$2" | head -n 10 | sed 's/^/    /'
    fi
}
on() { # PROCESSOR COMMAND...
    local cpu=$1
    shift
    qemu-x86_64 -cpu "$cpu" "$@"
}

moe=tests/golden/skywork-probs/model dense=tests/golden/llama/model
generate="--prompt-ids 1,5,9,2,7,3,8 --max-tokens 12 --temperature 0 --json"
for cpu in Haswell Nehalem; do
    level=$([ $cpu = Haswell ] && echo avx2 || echo dnnl)
    expect $cpu-refuses-more 2 env SKYMOE_KERNELS=avx512 qemu-x86_64 -cpu $cpu "$out/skymoe" inspect $moe
    grep -q "the highest level here is $level" "$work/$cpu-refuses-more.err" && passed=$((passed + 1)) || {
        failed=$((failed + 1)) && echo "$cpu is not taken for $level: $(cat "$work/$cpu-refuses-more.err")"
    }
    for model in moe dense; do
        expect $cpu-inspect-$model 0 on $cpu "$out/skymoe" inspect "${!model}" --tensors --json
        # shellcheck disable=SC2086
        expect $cpu-generate-$model 0 on $cpu "$out/skymoe" generate --model "${!model}" $generate
    done
    expect $cpu-test_reference 0 on $cpu "$out/tests/test_reference"
done
for kernel in cast rmsnorm rope swiglu gate route combine kv_store; do # all shapes, which of every entry take an hour
    expect Haswell-test_kernels-$kernel 0 on Haswell "$out/tests/test_kernels" $kernel
done
# The others at one shape, `entry:shape` (a minute and a half in all).
one_shape='copy:3 to_host:3 from_host:3 zero:3 add_parts:30 fill:5 init_normal:3 matmul_nt:11 matmul_nt_acc:11 matmul_nn:11
    matmul_tn:11 grouped_nt:4 grouped_nn:4 grouped_tn:4 router_nt:11 router_nn:11 router_tn:11 embed:3 embed_backward:3
    add:3 rmsnorm_backward:3 rmsnorm_backward_weight:3 rope_angles:3 attention:7 attention_backward:7 attention_paged:3
    gate_backward:3 z_loss:3 z_loss_backward:3 gate_sums:5 gate_statistics:3 route_given:3 pick:3 place:3 permute:3
    swiglu_backward:3 expert_similarity:3 logits_parts:3 cross_entropy:3 kl_divergence:5 adamw:3 sum_squares:3 sum:3
    amax:5'
for pair in $one_shape; do
    expect "Haswell-test_kernels-$pair" 0 on Haswell "$out/tests/test_kernels" "${pair%:*}" "${pair#*:}"
done
# shellcheck disable=SC2086
expect here-generate-moe 0 env SKYMOE_KERNELS=avx2 "$out/skymoe" generate --model $moe $generate
same Haswell-generate-moe here-generate-moe
# shellcheck disable=SC2086
expect Haswell-dnnl-generate 0 env SKYMOE_KERNELS=dnnl qemu-x86_64 -cpu Haswell "$out/skymoe" generate --model $dense $generate
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
