"""The work behind `eval/eval_openlm_ckpt.py`: options, checkpoints one after the other, a table."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from open_lm import storage
from open_lm.device import choose_device
from open_lm.evaluation.precision import Precision
from open_lm.evaluation.tasks import TaskFile, read_task_file
from open_lm.params.fields import UserError, parse_topics

if TYPE_CHECKING:
    from open_lm.evaluation.benchmark import Result


@dataclass(frozen=True)
class EvalParams:
    """evaluation"""

    checkpoint: tuple[str, ...] = ()
    """Checkpoints to score: epoch_N.pt files or run folders."""
    eval_yaml: str | None = None
    """YAML of tasks in LLM Foundry's layout."""
    model_config: str | None = None
    """model.json of the checkpoints, where they don't carry it."""
    model: str | None = None
    """Named size of the checkpoints, in place of --model-config."""
    tokenizer: str | None = None
    """tokenizer.json, a folder that holds one, or a Hugging Face name. Default: the checkpoint's own, else OpenLM's."""
    out: str | None = None
    """Write the results to this JSON file."""
    limit: int | None = None
    """Score the first so many questions of each task only."""
    max_seq_len: int | None = None
    """Longest request in tokens, for tasks that don't say; longer ones lose their left end. Default: the YAML's, else the model's."""
    device: str | None = None
    """Where the model runs, such as cpu or cuda:0. Default: cuda where there is one."""
    precision: Precision | None = None
    """Arithmetic of the model. Default: the YAML's, else fp32."""
    batch_tokens: int = 16384
    """Tokens of a batch, padding included."""


def parse_eval(argv: Sequence[str] | None) -> tuple[EvalParams, TaskFile]:
    """Checked options and tasks. Raises UserError with every problem of the command line and of the tasks."""
    values, _ = parse_topics((EvalParams,), argv, prog="eval_openlm_ckpt.py", description="Score checkpoints on benchmark tasks.")
    params: EvalParams = values[EvalParams]
    problems = _problems(params)
    tasks = None
    if params.eval_yaml:
        try:
            tasks = read_task_file(params.eval_yaml)
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)
    assert tasks is not None
    return params, tasks


def _problems(params: EvalParams) -> list[str]:
    problems = []
    if not params.checkpoint:
        problems.append("--checkpoint: give one or more checkpoints")
    if not params.eval_yaml:
        problems.append("--eval-yaml: give a YAML of tasks, such as in_memory_hf_eval.yaml")
    if params.model and params.model_config:
        problems.append(f"--model {params.model} and --model-config {params.model_config}: give one of the two")
    for name in dict.fromkeys(params.checkpoint):
        if params.checkpoint.count(name) > 1:
            problems.append(f"--checkpoint {name}: given twice; results are kept by name")
        if not storage.is_remote(name) and not storage.exists(name):
            problems.append(f"--checkpoint {name}: no such file or folder; give an epoch_N.pt or a run folder")
    for option, value, least in (
        ("--limit", params.limit, 1),
        ("--max-seq-len", params.max_seq_len, 2),
        ("--batch-tokens", params.batch_tokens, 1),
    ):
        if value is not None and value < least:
            problems.append(f"{option} {value}: give at least {least}")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        problems.append("torchrun with several processes: not built yet for evaluation; run the command with python alone")
    return problems


def run_eval(argv: Sequence[str] | None = None) -> None:
    """Score, print the table, write the JSON. Progress goes to stderr. Raises ValueError for what the user can mend."""
    params, file = parse_eval(argv)
    from open_lm.evaluation.table import markdown_table, write_results

    results: dict[str, dict[str, Result]] = {}
    for checkpoint in params.checkpoint:
        results[checkpoint] = _score_checkpoint(checkpoint, params, file)
        if params.out:  # after each, so that a failure in the next keeps what there is
            write_results(results, params.out)
    print(markdown_table(results))


def _score_checkpoint(checkpoint: str, params: EvalParams, file: TaskFile) -> dict[str, Result]:
    from open_lm.checkpoint.load import load_model
    from open_lm.evaluation.benchmark import score_tasks
    from open_lm.evaluation.scorer import ScorerOptions
    from open_lm.tokenizer import choose_tokenizer

    model, carried = load_model(checkpoint, params.model_config or params.model, choose_device(params.device))
    tokenizer = choose_tokenizer(params.tokenizer, carried, model.config.vocab_size)
    _say(f"{checkpoint}: tokenizer {tokenizer.name}")

    def report(name: str, result: Result) -> None:
        _say(f"{checkpoint}: {name}: {result.accuracy:.4f} ({result.questions} questions, {result.seconds:.1f} s)")

    return score_tasks(
        model.float(),
        tokenizer,
        file.tasks,
        max_seq_len=params.max_seq_len or file.max_seq_len or model.config.seq_len,
        options=ScorerOptions(params.batch_tokens, params.precision or file.precision),
        limit=params.limit,
        report=report,
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
