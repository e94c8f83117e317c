#!/usr/bin/env bash
# All checks and tests: scripts/test.sh [--fast] [pytest arguments]. Does its own set-up.
#   --fast   leaves out tests that are slow (processes, the quick start) and LLM Foundry's environment
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
fast=
if [ "${1:-}" = --fast ]; then fast=1 && shift; fi
python=$(scripts/setup.sh dev | tail -n 1)
bin=$(dirname "$python")
export PATH="$bin:$PATH" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" TOKENIZERS_PARALLELISM=false

echo "== format, lint, types"
"$bin/ruff" format --check .
"$bin/ruff" check .
"$bin/mypy"

if [ -z "$fast" ]; then
  echo "== golden models, trace, checkpoints and training (FSDP, DDP, resume) under LLM Foundry's torch, and its evaluators on our models"
  foundry=$(scripts/setup.sh foundry | tail -n 1)
  # a run that can't ask LLM Foundry fails: here where it is not installed, below where its environment is not found
  # (Composer, which the evaluators use, leaves a process group behind: they come last)
  OPENLM_REQUIRE_FOUNDRY=inside "$foundry" -m pytest -p no:cacheprovider tests/parity tests/model tests/checkpoint tests/train/test_step.py \
    tests/train/test_processes.py::test_resume_on_the_same_processes_is_bit_equal \
    tests/train/test_processes.py::test_amp_with_fsdp_trains tests/evaluation/foundry
fi

echo "== tests"
processes=$("$python" -c 'import os; print(len(os.sched_getaffinity(0)))')
# runs that are killed at random moments, in each test of that kind
export OPENLM_KILLS="${OPENLM_KILLS:-$([ -n "$fast" ] && echo 3 || echo 8)}"
if [ -n "$fast" ]; then
  exec "$python" -m pytest -n "$processes" --dist loadfile -m "not slow" "$@"
fi
export OPENLM_REQUIRE_FOUNDRY=1
exec "$python" -m pytest -n "$processes" --dist loadfile --durations 15 -rs "$@"
