#!/usr/bin/env bash
# From text to a benchmark table on one machine: scripts/quickstart.sh [OUT]   (OUT: default out/quickstart; must not exist yet)
# Corpus: Python's own standard library. Needs Python 3.11 or newer and nothing else; sets itself up. No network after that.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
out=${1:-$root/out/quickstart}
if [ -e "$out" ]; then
  echo "quickstart: $out exists; give another folder, or remove it" >&2
  exit 2
fi
python=$("$root/scripts/setup.sh" run | tail -n 1)
mkdir -p "$out"
out=$(cd "$out" && pwd)
export PATH="$(dirname "$python"):$PATH" PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" TOKENIZERS_PARALLELISM=false
cores=$("$python" -c 'import os; print(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())')
processes=$((cores < 2 ? 1 : 2))
export OMP_NUM_THREADS=$((cores / processes > 0 ? cores / processes : 1))

stages=()
# stage TITLE COMMAND...: say it, do it, remember how long it took
stage() {
  local title=$1 begin=$SECONDS
  shift
  printf '\n== %s\n' "$title"
  "$@"
  stages+=("$(printf '%5d s  %s' $((SECONDS - begin)) "$title")")
}

make_shards() {
  for part in train heldout; do
    "$python" "$root/datapreprocess/make_2048.py" --input-files "$out/text/$part.jsonl.zst" --output-dir "$out/$part" \
      --tokenizer "$out/tokenizer.json" --seq-len 256 --format npy --shard-size 1024
  done
}

# train [--resume latest]: in all $steps steps of 16 x 256 tokens, in 4 epochs
train() {
  torchrun --standalone --nproc-per-node "$processes" -m open_lm.main --model "$out/model.json" \
    --train-data "$out/train/256-v1/0/*.tar" --val-data "$out/heldout/256-v1/0/*.tar" --val-num-samples 65536 --global-val-batch-size 32 \
    --train-num-samples "$((steps * 16 * 256 / 4))" --epochs 4 --global-batch-size 16 --multiple-data-passes --workers 1 \
    --lr 4e-3 --warmup $((steps / 10)) --wd 0.1 --beta2 0.95 --grad-clip-norm 1 --precision fp32 --z-loss 1e-4 \
    --log-every-n-steps 5 --save-every-steps $((steps / 8)) --report-to tensorboard --logs-dir "$out/logs" --name quickstart "$@"
}

# Kill every process of the run with SIGKILL, as a lost machine would, once half of the steps are in a checkpoint.
train_until_killed() {
  local half="$out/logs/quickstart/checkpoints/step_$((steps / 2))"
  set -m
  train &
  local pid=$!
  set +m
  until [ -e "$half" ]; do
    kill -0 "$pid" 2>/dev/null || { echo "quickstart: training ended before it was to be stopped" >&2; exit 1; }
    sleep 0.5
  done
  kill -KILL -- "-$pid"
  wait "$pid" 2>/dev/null || true
  echo "Killed after step $((steps / 2)), by SIGKILL."
}

score() {
  "$python" "$root/eval/eval_openlm_ckpt.py" --eval-yaml "$out/tasks/tasks.yaml" --checkpoint "$checkpoint" --out "$out/results.json"
}

generate() {
  "$python" "$root/scripts/generate.py" --checkpoint "$checkpoint" --max-new-tokens 80 --temperature 0.7 --top-p 0.9 --seed 1 \
    --prompt $'import os\nimport sys\n\n\ndef main(' $'class Error(Exception):\n    """' $'    def __init__(self, name' | tee "$out/samples.txt"
}

report() {
  "$python" "$root/scripts/report.py" --run "$out/logs/quickstart" --scores "$out/results.json" --samples "$out/samples.txt" \
    --title "Quick start: Python's standard library" --chance next_line=0.25 finish_line=0 --output "$out/report.html"
}

steps=${QUICKSTART_STEPS:-200} # a multiple of 8; 200 take about three minutes on two cores
checkpoint=$out/logs/quickstart/checkpoints/epoch_4.pt
echo '{"hidden_dim": 192, "n_layers": 4, "n_heads": 4, "seq_len": 256, "vocab_size": 8192, "qk_norm": true, "weight_tying": true}' >"$out/model.json"

stage "corpus: Python's standard library to jsonl.zst" \
  "$python" "$root/datapreprocess/stdlib_corpus.py" --output-dir "$out/text"
stage "tokenizer: byte-level BPE of 8,192 ids" \
  "$python" "$root/datapreprocess/train_tokenizer.py" --input-files "$out/text/train.jsonl.zst" --output "$out/tokenizer.json" --vocab-size 8192
stage "shards: text to tokens to tar files" make_shards
stage "tasks: two benchmarks from the held-out files" \
  "$python" "$root/datapreprocess/make_tasks.py" --input-files "$out/text/heldout.jsonl.zst" --output-dir "$out/tasks"
stage "training on $processes processes, killed half way" train_until_killed
stage "training again with --resume latest, to the end" train --resume latest
stage "scores" score
stage "three samples" generate
stage "report" report

printf '\n== Done in %d s\n' "$SECONDS"
printf '%s\n' "${stages[@]}"
cat <<EOF

The report: $out/report.html

What you would type next (from $root, after: source .venv/bin/activate), with your own text in my_data/:
  python scripts/generate.py --checkpoint $checkpoint --prompt "def read(path):"
  python datapreprocess/make_2048.py --input-files my_data/*.jsonl.zst --output-dir preproc_data --seq-len 256 --tokenizer $out/tokenizer.json
  torchrun --standalone --nproc-per-node $processes -m open_lm.main --model $out/model.json --train-data "preproc_data/256-v1/0/*.tar" \\
    --epochs 1 --global-batch-size 16 --lr 4e-3 --precision fp32 --log-every-n-steps 5 --name my_run
EOF
