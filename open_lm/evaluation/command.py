"""The work behind `eval/eval_openlm_ckpt.py`: options, checkpoints one after the other, a table."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from open_lm import storage
from open_lm.evaluation.precision import Precision
from open_lm.evaluation.tasks import TaskFile, read_task_file
from open_lm.params.fields import UserError, parse_topics

if TYPE_CHECKING:
    from open_lm.evaluation.benchmark import Result
    from open_lm.evaluation.processes import Processes


@dataclass(frozen=True)
class EvalParams:
    """evaluation"""

    checkpoint: tuple[str, ...] = ()
    """Checkpoints to score: epoch_N.pt files or run folders."""
    hf_model: tuple[str, ...] = ()
    """Causal models of Hugging Face transformers to score, by name or folder; after the checkpoints."""
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
    if not params.checkpoint and not params.hf_model:
        problems.append("--checkpoint: give one or more checkpoints, or models with --hf-model")
    if not params.eval_yaml:
        problems.append("--eval-yaml: give a YAML of tasks, such as in_memory_hf_eval.yaml")
    if params.model and params.model_config:
        problems.append(f"--model {params.model} and --model-config {params.model_config}: give one of the two")
    names = [*params.checkpoint, *params.hf_model]
    for name in dict.fromkeys(names):
        if params.hf_model.count(name) and names.count(name) > 1:
            problems.append(f"--hf-model {name}: given twice; results are kept by name")
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
    return problems


def run_eval(argv: Sequence[str] | None = None) -> None:
    """Score, print the table, write the JSON. Progress goes to stderr. Raises ValueError for what the user can mend.

    Under torchrun every process scores its share of the questions, and the first one speaks and writes.
    """
    params, file = parse_eval(argv)
    from open_lm.evaluation.processes import join_processes
    from open_lm.evaluation.table import markdown_table, write_results

    processes = join_processes()
    results: dict[str, dict[str, Result]] = {}
    for name in (*params.checkpoint, *params.hf_model):
        results[name] = _score_model(name, params, file, processes)
        if params.out and processes.rank == 0:  # after each, so that a failure in the next keeps what there is
            write_results(results, params.out)
    if processes.rank == 0:
        print(markdown_table(results))


def _score_model(name: str, params: EvalParams, file: TaskFile, processes: Processes) -> dict[str, Result]:
    from open_lm.evaluation.benchmark import score_tasks
    from open_lm.evaluation.models import open_model
    from open_lm.evaluation.scorer import ScorerOptions

    opened = open_model(
        name, hf=name in params.hf_model, config=params.model_config or params.model, tokenizer=params.tokenizer, device=params.device
    )
    _say(f"{name}: tokenizer {opened.tokenizer.name}", processes)

    def report(task: str, result: Result) -> None:
        _say(f"{name}: {task}: {result.accuracy:.4f} ({result.questions} questions, {result.seconds:.1f} s)", processes)

    return score_tasks(
        opened.model,
        opened.tokenizer,
        file.tasks,
        max_seq_len=params.max_seq_len or file.max_seq_len or opened.seq_len,
        options=ScorerOptions(params.batch_tokens, params.precision or file.precision, processes),
        limit=params.limit,
        report=report,
    )


def _say(line: str, processes: Processes) -> None:
    if processes.rank == 0:
        print(line, file=sys.stderr, flush=True)
