#!/usr/bin/env bash
# The main job end to end: text -> dense model -> upcycled MoE -> FP8 -> text. Every step is an ordinary command,
# printed as it runs. Settings: DEMO_DIR (build/demo), DEMO_SIZE full|tiny, DEMO_SEED (1), DEMO_CACHE (downloads),
# SKYMOE (the program), DEMO_SCALE (1: multiplies all step counts, for longer runs).
set -euo pipefail
cd "$(dirname "$0")/.."

dir=${DEMO_DIR:-build/demo} size=${DEMO_SIZE:-full} seed=${DEMO_SEED:-1} scale=${DEMO_SCALE:-1}
skymoe=${SKYMOE:-build/skymoe}
export DEMO_CACHE=${DEMO_CACHE:-build/cache}

# One recipe, two sizes. A step is `first_batch` sequences of `seq` tokens in the dense run, then `batch`. Both the MoE and
# the continued dense model start from checkpoint `branch`, taken before the dense model's learning rate decays.
case $size in
full)
    vocab=8192 seq=256 first_batch=4 dense=$((1000 * scale)) branch=$((800 * scale)) batch=8 moe=$((340 * scale))
    eval_tokens=200000 watch_tokens=16384
    ;;
tiny) vocab=8192 seq=128 first_batch=8 dense=16 branch=12 batch=8 moe=9 eval_tokens=8192 watch_tokens=2048 ;;
*) echo "demo: DEMO_SIZE is $size (use full or tiny)" >&2 && exit 2 ;;
esac
decay=$((dense - branch)) cooldown=$((moe / 3))

started=$(date +%s)
say() { printf '\n\033[1m== %s\033[0m  (at %d s)\n' "$*" $(($(date +%s) - started)); }
show() { printf '\033[2m$'; printf ' %s' "$@"; printf '\033[0m\n'; }
run() { show "$@" && "$@"; }
save() { local to=$1 && shift && show "$@" ">" "$to" && "$@" > "$to"; } # the command's JSON into a file
field() { sed -n "s/.*\"$2\":\([^,}]*\).*/\1/p" "$1"; }                 # a number of a JSON object on one line
last_row() { grep '"loss"' "$dir/$1/metrics.jsonl" | grep -v eval_loss | tail -n 1 | sed -n "s/.*\"$2\":\([^,}]*\).*/\1/p"; }
newest() { echo "$dir/$1/$(cat "$dir/$1/latest")"; }
sum() { awk -v a="$1" -v b="$2" 'BEGIN {printf "%.6g", a + b}'; }

mkdir -p "$dir"
rm -rf "$dir"/{dense,moe,moe-start,moe-fp8,continued,continued-flops}

say "1/8 Text from Debian's documentation packages"
if [ ! -e "$dir/text.done" ]; then
    run tools/demo-text.sh "$dir/text" 2>&1 | tee "$dir/text.log"
    touch "$dir/text.done"
fi

say "2/8 Tokenizer and shards"
[ -e "$dir/data_train.idx" ] || run "$skymoe" prepare --input "$dir/text" --output "$dir/data" --train-tokenizer \
    --vocab-size "$vocab" --split 92,8,0 --write-text

common=(--data "$dir/data" --seed "$seed" --seq-length "$seq" --dtype bf16 --lr-schedule wsd --adam-beta2 0.99
    --eval-tokens "$watch_tokens" --keep 0)

say "3/8 Dense model: $dense steps of $((seq * first_batch)) tokens, the last $decay with a falling learning rate"
run "$skymoe" train --model configs/small.json --output "$dir/dense" "${common[@]}" --train-steps "$dense" \
    --global-batch-size "$first_batch" --micro-batch-size "$first_batch" --init-std 0.04 --lr 7e-4 \
    --lr-warmup-steps $((dense / 10)) --wsd-decay-steps "$decay" --save-interval "$branch" --eval-interval $((dense / 5))
start=$dir/dense/$(printf 'step-%06d' "$branch")

say "4/8 Upcycling its step $branch to 8 experts, top-2"
run "$skymoe" upcycle --model "$start" --output "$dir/moe-start" --num-experts 8 --moe-router-topk 2 --method copy \
    --seed "$seed"

# The rate is the best of 7e-4, 1.5e-3 and 3e-3 for the dense model and for the mixture alike.
say "5/8 Mixture of experts: $moe steps; gate norm, capacity 1.1 with drops, adaptive coefficients"
continuation=("${common[@]}" --data-skip $((branch * first_batch)) --global-batch-size "$batch" --micro-batch-size "$batch" --lr 1.5e-3
    --lr-warmup-steps $((moe / 20 + 1)) --wsd-decay-steps "$cooldown" --eval-interval $((moe / 4)))
run "$skymoe" train --init "$dir/moe-start" --output "$dir/moe" "${continuation[@]}" --train-steps "$moe" \
    --moe-capacity-factor 1.1 --moe-aux-loss-coeff 0.5 --moe-aux-loss-xi 1

# As many dense steps as have the FLOPs of the MoE's; the same run's checkpoint before step $moe decays gives equal tokens.
more=$(awk -v moe="$(last_row moe flops)" -v flops="$(last_row dense flops)" -v tokens="$(last_row dense tokens)" \
    -v step=$((batch * seq)) 'BEGIN {printf "%d", moe / (flops / tokens * step) + 0.5}')
say "6/8 Dense model continued from the same checkpoint: $more steps (equal FLOPs), and $moe steps (equal tokens)"
run "$skymoe" train --init "$start" --output "$dir/continued-flops" "${continuation[@]}" --train-steps "$more" \
    --save-interval $((moe - cooldown))
at=$(printf 'step-%06d' $((moe - cooldown)))
mkdir "$dir/continued"
cp -r "$dir/continued-flops"/{config.json,settings.conf,metrics.jsonl,"$at"} "$dir/continued"
echo "$at" > "$dir/continued/latest"
run "$skymoe" train --resume --output "$dir/continued" --train-steps "$moe"

say "7/8 FP8, evaluation"
save "$dir/quantize.json" "$skymoe" quantize --model "$(newest moe)" --output "$dir/moe-fp8" --format fp8 \
    --data "$dir/data" --max-tokens "$watch_tokens" --json
for name in dense continued continued-flops moe moe-fp8; do
    folder=$dir/moe-fp8 && [ $name = moe-fp8 ] || folder=$(newest $name)
    save "$dir/eval-$name.json" "$skymoe" eval --model "$folder" --data "$dir/data" --seq-length "$seq" \
        --max-tokens "$eval_tokens" --json
done
judged=$(field "$dir/eval-moe.json" bytes) # of the text, from its beginning
xz_bits=$(head -c "$judged" "$dir/data_valid.txt" | xz -9e -c | wc -c | awk -v n="$judged" '{printf "%.4f", 8 * $1 / n}')

say "8/8 Text, report"
samples=""
for model in moe moe-fp8; do
    folder=$dir/moe-fp8 && [ $model = moe-fp8 ] || folder=$(newest $model)
    for prompt in "The package manager" "The following command" "文件系统" "这个命令"; do
        save "$dir/sample.json" "$skymoe" generate --model "$folder" --prompt "$prompt" --max-tokens 48 \
            --temperature 0.7 --top-p 0.9 --seed "$seed" --json
        text=$(sed -n 's/.*"text":\("\([^"\\]\|\\.\)*"\).*/\1/p' "$dir/sample.json")
        samples+="${samples:+,}{\"model\":\"$model\",\"prompt\":\"$prompt\",\"text\":$text}"
    done
done

# tokens, FLOPs and seconds count from the first random weight: the start's share is that of $branch dense steps.
share=$(awk -v a="$branch" -v b="$dense" 'BEGIN {print a / b}')
result() { # name, run, eval file
    local own=0 tokens flops seconds
    [ "$2" = dense ] || own=$share
    tokens=$(awk -v t="$(last_row "$2" tokens)" -v d="$(last_row dense tokens)" -v s=$own 'BEGIN {printf "%d", t + d * s}')
    flops=$(awk -v t="$(last_row "$2" flops)" -v d="$(last_row dense flops)" -v s=$own 'BEGIN {printf "%.4g", t + d * s}')
    seconds=$(awk -v t="$(last_row "$2" seconds)" -v d="$(last_row dense seconds)" -v s=$own 'BEGIN {printf "%.1f", t + d * s}')
    printf '"%s":{"eval_loss":%s,"bits_per_byte":%s,"tokens":%s,"flops":%s,"seconds":%s}' "$1" \
        "$(field "$3" loss)" "$(field "$3" bits_per_byte)" "$tokens" "$flops" "$seconds"
}
{
    printf '{%s,\n' "$(result dense dense "$dir/eval-dense.json")"
    printf '%s,\n' "$(result dense_continued continued "$dir/eval-continued.json")"
    printf '%s,\n' "$(result dense_continued_equal_flops continued-flops "$dir/eval-continued-flops.json")"
    printf '%s,\n' "$(result moe moe "$dir/eval-moe.json")"
    printf '%s,\n' "$(result moe_fp8 moe "$dir/eval-moe-fp8.json")"
    printf '"kl_fp8":%s,"seed":%s,"xz_bits_per_byte":%s,"samples":[%s]}\n' "$(field "$dir/quantize.json" kl_mean)" "$seed" \
        "$xz_bits" "$samples"
} > "$dir/summary.json"
run "$skymoe" report "$dir/dense" "$dir/continued-flops" "$dir/moe" --summary "$dir/summary.json" --output "$dir/report.html"

printf '\n%-34s %10s %10s %10s %10s %8s\n' "" "eval loss" "bits/byte" "tokens" "FLOPs" "seconds"
row() {
    awk -v title="$1" -F'[:,{}]' -v key="\"$2\"" '$0 ~ key ":" || $0 ~ "{" key {
        for (i = 1; i <= NF; i++) v[$i] = $(i + 1)
        printf "%-34s %10.4f %10.4f %10d %10.3g %8.0f\n", title, v["\"eval_loss\""], v["\"bits_per_byte\""],
               v["\"tokens\""], v["\"flops\""], v["\"seconds\""] }' "$dir/summary.json"
}
row "dense" dense
row "dense, continued (equal tokens)" dense_continued
row "dense, continued (equal FLOPs)" dense_continued_equal_flops
row "mixture of 8 experts, top-2" moe
row "the same in FP8" moe_fp8
printf '%-34s %10s %10.4f   of the same %d bytes\n' "xz -9e" "" "$xz_bits" "$judged"
printf 'FP8 against bf16: KL %.5f nats, perplexity %.3f -> %.3f\n' "$(field "$dir/quantize.json" kl_mean)" \
    "$(field "$dir/quantize.json" ppl_before)" "$(field "$dir/quantize.json" ppl_after)"
# What a run may claim: `spread` is by how much the loss of one model differs between seeds 1 to 3 (docs/performance.md).
spread=0.07
if [ "$size" = full ]; then
    awk -v moe="$(field "$dir/eval-moe.json" loss)" -v tokens="$(field "$dir/eval-continued.json" loss)" \
        -v flops="$(field "$dir/eval-continued-flops.json" loss)" -v spread="$spread" 'BEGIN {
        lead = tokens - moe
        printf("At equal tokens the mixture is %.4f nats %s than the dense model, at equal FLOPs %.4f %s.\n",
               lead < 0 ? -lead : lead, lead < 0 ? "worse" : "better",
               flops < moe ? moe - flops : flops - moe, flops < moe ? "worse" : "better")
        printf("Between seeds the loss of one model differs by %s nats: %s.\n", spread,
               spread < lead ? "the lead is larger" : "this run is too short to claim a lead") }'
else
    echo "(DEMO_SIZE=tiny: a few steps to see every part work; its figures claim nothing)"
fi
printf '\nText the mixture writes:\n'
sed -n 's/.*"samples":\[\(.*\)\]}/\1/p' "$dir/summary.json" | sed 's/},{/}\n{/g' |
    sed -E 's/^\{?"model":"([^"]*)","prompt":"([^"]*)","text":"(.*)"\}?$/  [\1] \2 ... \3/; s/\\n/ /g; s/\\"/"/g' | cut -c1-240
printf '\nreport: %s/report.html   summary: %s/summary.json   %d s in all\n' "$dir" "$dir" $(($(date +%s) - started))
