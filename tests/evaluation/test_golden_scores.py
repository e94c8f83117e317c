"""LLM Foundry's own scores of a checkpoint, and ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from open_lm.checkpoint.load import load_model
from open_lm.evaluation.benchmark import score_tasks
from open_lm.evaluation.scorer import ScorerOptions
from open_lm.evaluation.tasks import parse_task_file
from open_lm.tokenizer import Tokenizer, load_tokenizer

N_ROWS = 7


@pytest.fixture(scope="module")
def small_lm(shared: Path) -> tuple[object, Tokenizer]:
    folder = shared / "data/golden/small_lm"
    model, _ = load_model(folder / "epoch_1.pt", str(folder / "model_config.json"))
    return model, load_tokenizer(str(shared / "data/tokenizers/20B_tokenizer.json"))


@pytest.mark.parametrize("row", range(N_ROWS))
def test_accuracy_equals_llm_foundrys(row: int, shared: Path, small_lm: tuple[object, Tokenizer]) -> None:
    folder = shared / "data/golden/foundry"
    rows = json.loads((folder / "expected.json").read_text())["tasks"]
    assert len(rows) == N_ROWS
    keys = ("label", "num_fewshot", "icl_task_type", "continuation_delimiter", "fewshot_random_seed", "max_seq_len")
    entry = {key: rows[row][key] for key in keys} | {"dataset_uri": str(folder / rows[row]["file"])}
    tasks = parse_task_file({"icl_tasks": [entry]}, "golden.yaml").tasks
    model, tokenizer = small_lm
    results = score_tasks(model, tokenizer, tasks, max_seq_len=2048, options=ScorerOptions())  # type: ignore[arg-type]
    (result,) = results.values()
    assert result.questions == 100
    assert result.accuracy == pytest.approx(rows[row]["expected"], abs=1e-9)
