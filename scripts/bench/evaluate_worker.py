"""One column of scripts/bench/evaluate.py, in its own environment: loads the model once, then scores what each line of stdin names.

usage: evaluate_worker.py COLUMN INPUTS.json
stdin: {"name": task, ...} a line; stdout: one JSON object a line, the first when the model is loaded. Seconds hold reading of the data,
prompts, tokenising and scoring, not the model's load. No cache outlives a request.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[2])
os.environ["HF_HUB_OFFLINE"] = "1"

import torch  # noqa: E402

from open_lm.checkpoint.load import load_model  # noqa: E402
from open_lm.model.transformer import Transformer  # noqa: E402
from open_lm.tokenizer import Tokenizer, load_tokenizer  # noqa: E402
from scripts.bench.evaluate_data import task_file  # noqa: E402

Answer = Callable[[Mapping[str, Any]], dict[str, Any]]
"""A request to its findings: `seconds`, `scores` by name, and what else the column says."""
MAX_SEQ_LEN = 2048
"""OpenLM's setting. Requests are shorter, so that it decides the padding alone."""


def main() -> int:
    """Serve until stdin ends."""
    column, inputs = sys.argv[1], json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
    out, sys.stdout = sys.stdout, sys.stderr  # libraries print
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(inputs["threads"])
    model, _ = load_model(inputs["weights"], inputs["config"])
    answer = COLUMNS[column](model.float(), load_tokenizer(inputs["tokenizer"]), inputs)
    print(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads()}), file=out, flush=True)
    for line in sys.stdin:
        with tempfile.TemporaryDirectory(prefix="bench-cache-") as cache:
            _fresh_cache(cache)
            print(json.dumps(answer(json.loads(line))), file=out, flush=True)
    return 0


def _fresh_cache(folder: str) -> None:
    """Hugging Face's datasets keep what they made of a file; each measurement starts without it."""
    if "datasets" in sys.modules:
        import datasets

        datasets.disable_progress_bars()
        datasets.config.HF_DATASETS_CACHE = datasets.config.HF_DATASETS_CACHE.__class__(folder)


def native(model: Transformer, tokenizer: Tokenizer, inputs: Mapping[str, Any]) -> Answer:
    """Our scorer; with `questions`, what it says to each of the first ones."""
    from open_lm.evaluation.benchmark import grade, load_data_sets
    from open_lm.evaluation.scorer import ScorerOptions
    from open_lm.evaluation.tasks import read_task_file

    def answer(request: Mapping[str, Any]) -> dict[str, Any]:
        start = time.perf_counter()
        [task] = read_task_file(str(task_file(Path(inputs["tasks"]), request["name"]))).tasks
        [data] = load_data_sets(task, tokenizer, min(MAX_SEQ_LEN, model.config.seq_len))
        right = grade(task, data, model, tokenizer, ScorerOptions())
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "scores": {request["name"]: sum(right) / len(right)}, "right": [int(one) for one in right]}

    return answer


def bridge(model: Transformer, tokenizer: Tokenizer, inputs: Mapping[str, Any]) -> Answer:
    """LLM Foundry's evaluators with our padding, as `--backend llm-foundry` runs them."""
    from open_lm.evaluation.foundry.bridge import BridgeOptions, score_entries
    from open_lm.evaluation.foundry.entries import read_entries

    def answer(request: Mapping[str, Any]) -> dict[str, Any]:
        start = time.perf_counter()
        file = read_entries(str(task_file(Path(inputs["tasks"]), request["name"])))
        results = score_entries(model, tokenizer, file, BridgeOptions(MAX_SEQ_LEN))
        return {"seconds": time.perf_counter() - start, "scores": {name: result.accuracy for name, result in results.items()}}

    return answer


def alone(model: Transformer, tokenizer: Tokenizer, inputs: Mapping[str, Any]) -> Answer:
    """LLM Foundry without us."""
    from scripts.bench.evaluate_foundry import LLMFoundry

    foundry = LLMFoundry(model, tokenizer, MAX_SEQ_LEN)
    return lambda request: foundry.score(task_file(Path(inputs["tasks"]), request["name"]), request["batch_size"], request["questions"])


def harness(model: Transformer, tokenizer: Tokenizer, inputs: Mapping[str, Any]) -> Answer:
    """lm-evaluation-harness with its own Hugging Face model (`batch_size`), or with ours (none)."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from open_lm.evaluation.lm_eval_backend import HarnessModel
    from open_lm.evaluation.scorer import ScorerOptions

    manager = TaskManager(include_path=str(Path(inputs["tasks"]) / "lm-eval"), include_defaults=False)
    stock = HFLM(pretrained=inputs["stock"], device="cpu", dtype="float32", batch_size=8)

    def answer(request: Mapping[str, Any]) -> dict[str, Any]:
        task, size = f"bench_{request['name']}", request.get("batch_size")
        stock.batch_size_per_gpu = size
        start = time.perf_counter()
        asked = HarnessModel(model, tokenizer, ScorerOptions()) if size is None else stock
        told = simple_evaluate(asked, tasks=[task], task_manager=manager, bootstrap_iters=0, log_samples=False, verbosity="ERROR")
        seconds = time.perf_counter() - start
        assert told is not None
        found = told["results"][task]
        return {"seconds": seconds, "scores": {f"{request['name']}:{metric}": found[f"{metric},none"] for metric in ("acc", "acc_norm")}}

    return answer


COLUMNS: dict[str, Callable[[Transformer, Tokenizer, Mapping[str, Any]], Answer]] = {
    "foundry": alone,
    "bridge": bridge,
    "native": native,
    "lm-eval": harness,
}

if __name__ == "__main__":
    sys.exit(main())
