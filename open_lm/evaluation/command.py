"""The work behind `eval/eval_openlm_ckpt.py`: options, a backend, checkpoints one after the other, a table.

Backends: `native` scores in this environment; `llm-foundry` on LLM Foundry's own evaluators, here where they are installed, else by
the same command in the environment that has them.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from open_lm import storage
from open_lm.device import choose_device
from open_lm.evaluation import published
from open_lm.evaluation.foundry import environment
from open_lm.evaluation.foundry.entries import FoundryFile, read_entries
from open_lm.evaluation.precision import Precision
from open_lm.evaluation.table_files import check_ending
from open_lm.evaluation.tasks import TaskFile, read_task_file
from open_lm.params.check import ABSENT
from open_lm.params.fields import UserError, given_options, options_of, parse_topics
from open_lm.params.training import ArchitectureParams

if TYPE_CHECKING:
    from open_lm.evaluation.models import ModelChoice, OpenModel
    from open_lm.evaluation.processes import Processes
    from open_lm.evaluation.result import Result


HarnessTasks = tuple[str, ...]
"""Names of lm-evaluation-harness's tasks."""
ArchitectureFlags = dict[str, Any]
"""The options of `ArchitectureParams` that are given."""


@dataclass(frozen=True)
class EvalParams:
    """evaluation"""

    checkpoint: tuple[str, ...] = ()
    """Checkpoints to score: epoch_N.pt files, step_<n> folders, run folders or bare state dicts; local or behind URLs."""
    hf_model: tuple[str, ...] = ()
    """Causal models of Hugging Face transformers to score, by name or folder; after the checkpoints."""
    eval_yaml: str | None = None
    """YAML of tasks in LLM Foundry's layout."""
    model_config: str | None = None
    """model.json of the checkpoints, where they don't carry it."""
    model: str | None = None
    """Named size of the checkpoints, in place of --model-config; either has to agree with what a checkpoint carries."""
    rotary_old: bool = False
    """First name of --positional-embedding-type head_rotary, which the published 1B and 7B have."""
    tokenizer: str | None = None
    """tokenizer.json, a folder that holds one, or a Hugging Face name. Default: the model's own, else OpenLM's. Where --checkpoint and
    --hf-model are scored together it is that of the checkpoints."""
    backend: Literal["auto", "native", "llm-foundry", "lm-eval"] = "auto"
    """What scores: OpenLM itself (native), LLM Foundry's evaluators in their environment, or lm-evaluation-harness's own tasks (--tasks).
    auto: lm-eval with --tasks, else llm-foundry inside its environment, else native."""
    tasks: tuple[str, ...] = ()
    """Tasks of lm-evaluation-harness by name, such as hellaswag,arc_easy, in place of --eval-yaml."""
    include_path: str | None = None
    """Folder with task YAMLs of lm-evaluation-harness's kind, for --tasks."""
    num_fewshot: int | None = None
    """Examples before each question, for --tasks. Default: the task's own number."""
    build_env: bool = False
    """Build LLM Foundry's environment first where it isn't there (about 7 GB)."""
    out: tuple[str, ...] = ()
    """Write the table to these files; the ending says how: .json (what compare.py reads), .csv, .md, .png."""
    reference: tuple[str, ...] = ()
    """Columns of published numbers beside the checkpoints: OpenLM-1B, OpenLM-7B, LLaMA-7B, MPT-7B."""
    limit: int | None = None
    """Score the first so many questions of each task only."""
    max_seq_len: int | None = None
    """Longest request in tokens, for tasks that don't say; longer ones lose their left end. Default: the YAML's, else the model's."""
    device: str | None = None
    """Where the model runs, such as cpu or cuda:0. Default: cuda where there is one."""
    precision: Precision | None = None
    """Arithmetic of the model. Default: the YAML's, else fp32."""
    batch_tokens: int | None = None
    """Tokens of a batch, padding included; of the native backend (LLM Foundry's is the YAML's device_eval_batch_size). Default: 16384, but
    1024 for scoring on a CPU."""
    cut: bool = True
    """With llm-foundry, pad to the longest request of a batch; --no-cut pads to max_seq_len as LLM Foundry does, for the same scores."""


Backend = Literal["native", "llm-foundry", "lm-eval"]


def choose_backend(named: str, harness_tasks: bool = False) -> Backend:
    """The named one; for auto that of the tasks, else llm-foundry where it is installed."""
    if named == "auto" and harness_tasks:
        return "lm-eval"
    if named == "auto":
        return "llm-foundry" if environment.inside() else "native"
    assert named in ("native", "llm-foundry", "lm-eval")
    return cast(Backend, named)


TOPICS = (EvalParams, ArchitectureParams)
_MEANT_FOR: dict[str, tuple[Backend, ...]] = {
    "include_path": ("lm-eval",),
    "num_fewshot": ("lm-eval",),
    "build_env": ("llm-foundry",),
    "cut": ("llm-foundry",),
    "batch_tokens": ("native", "lm-eval"),
}
"""Options that some backends have no use for."""


def parse_eval(argv: Sequence[str] | None) -> tuple[EvalParams, ArchitectureFlags, TaskFile | FoundryFile | HarnessTasks]:
    """Checked options, architecture flags and tasks, as the backend takes them.

    Raises:
        UserError: with every problem of the command line and of the tasks.
    """
    about = "Score checkpoints on benchmark tasks."
    values, _ = parse_topics(TOPICS, argv, absent=ABSENT, prog="eval_openlm_ckpt.py", description=about)
    params: EvalParams = values[EvalParams]
    backend = choose_backend(params.backend, bool(params.tasks))
    problems = _problems(params)
    given = given_options(TOPICS, argv)
    problems += [
        f"--{name.replace('_', '-')}: only with --backend {' or '.join(meant)}; leave it out with {backend}"
        for name, meant in _MEANT_FOR.items()
        if name in given and backend not in meant
    ]
    flags = {name: value for name, value in asdict(values[ArchitectureParams]).items() if name in given}
    problems += [problem for name, value in flags.items() if (problem := options_of(TOPICS)[name].problem(value))]
    if params.rotary_old and flags.setdefault("positional_embedding_type", "head_rotary") != "head_rotary":
        problems.append(f"--rotary-old: is head_rotary; leave --positional-embedding-type {flags['positional_embedding_type']} out")
    if flags and not params.checkpoint:
        problems.append(f"--{next(iter(flags)).replace('_', '-')}: is for --checkpoint; --hf-model brings its own configuration")
    tasks: TaskFile | FoundryFile | HarnessTasks | None = None
    if backend == "lm-eval":
        tasks = tuple(name for text in params.tasks for name in text.split(",") if name)
    elif params.eval_yaml:
        try:
            foundry = backend == "llm-foundry"
            tasks = read_entries(params.eval_yaml) if foundry else read_task_file(params.eval_yaml)
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(problems)
    assert tasks is not None
    return params, flags, tasks


def _problems(params: EvalParams) -> list[str]:
    problems = []
    if not params.checkpoint and not params.hf_model:
        problems.append("--checkpoint: give one or more checkpoints, or models with --hf-model")
    problems += _task_problems(params)
    if params.model and params.model_config:
        problems.append(f"--model {params.model} and --model-config {params.model_config}: give one of the two")
    names = [*params.checkpoint, *params.hf_model]
    for name in dict.fromkeys(params.hf_model):
        if names.count(name) > 1:
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
    for name in params.out:
        try:
            check_ending(name)
        except ValueError as error:
            problems.append(str(error))
    for name in params.reference:
        try:
            published.reference(name)
        except ValueError as error:
            problems.append(str(error))
    backend = choose_backend(params.backend, bool(params.tasks))
    if backend == "lm-eval" and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        problems.append("torchrun with several processes: the other backends take them, lm-eval doesn't; run it with python alone")
    problems += _hf_problems(params)
    return problems


def _hf_problems(params: EvalParams) -> list[str]:
    problems = []
    for name in params.hf_model:
        if storage.is_remote(name) or (name.startswith((".", "/", "~")) and not storage.local_path(name).is_dir()):
            problems.append(f"--hf-model {name}: no such folder; give a folder with a config.json, or a name on the Hugging Face hub")
    if params.hf_model and not params.checkpoint and (params.model or params.model_config):
        given = f"--model {params.model}" if params.model else f"--model-config {params.model_config}"
        problems.append(f"{given}: is for --checkpoint; Hugging Face models carry their configuration")
    return problems


def _task_problems(params: EvalParams) -> list[str]:
    if choose_backend(params.backend, bool(params.tasks)) != "lm-eval":
        problems = [] if params.eval_yaml else ["--eval-yaml: give a YAML of tasks, such as in_memory_hf_eval.yaml"]
        if params.tasks:
            problems.append(f"--tasks {' '.join(params.tasks)}: are lm-eval's; leave --backend {params.backend} out")
        return problems
    problems = [] if params.tasks else ["--tasks: give names of lm-evaluation-harness's tasks, such as hellaswag,arc_easy"]
    if params.eval_yaml:
        problems.append(f"--eval-yaml {params.eval_yaml}: goes with the other backends; --tasks names those of lm-eval")
    if params.num_fewshot is not None and params.num_fewshot < 0:
        problems.append(f"--num-fewshot {params.num_fewshot}: give at least 0")
    if importlib.util.find_spec("lm_eval") is None:
        problems.append("--backend lm-eval: lm-evaluation-harness is not installed; pip install 'lm-eval>=0.4.9' (extra [eval])")
    return problems


def run_eval(argv: Sequence[str] | None = None) -> int:
    """Score, print the table, write the files; 0, or the exit status of the command in LLM Foundry's environment.

    Progress goes to stderr. Raises ValueError for what the user can mend.
    """
    params, flags, file = parse_eval(argv)
    backend = choose_backend(params.backend, bool(params.tasks))
    if backend == "llm-foundry" and not environment.inside():
        python = environment.build() if params.build_env else environment.find_python()
        if python is None:
            raise ValueError(environment.missing())
        _say(f"backend llm-foundry: in its own environment, {python.parents[1]}")
        return environment.run_there(python, sys.argv[1:] if argv is None else argv, params.device)
    from open_lm.evaluation.benchmark import data_problems
    from open_lm.evaluation.models import ModelChoice
    from open_lm.evaluation.processes import Processes, join_processes
    from open_lm.evaluation.table import markdown_table
    from open_lm.evaluation.table_files import write_table

    if isinstance(file, FoundryFile):
        _check_composer(params, file)
    kernel = flags.pop("attn_name", "auto")
    choice = ModelChoice(params.model_config or params.model, flags, kernel)
    choice.check(params.checkpoint)
    problems = data_problems(file.tasks) if isinstance(file, TaskFile) else []
    if problems:
        raise UserError([f"--eval-yaml {params.eval_yaml}: {problem}" for problem in problems])
    _say(f"backend {backend}")
    references = published.references(params.reference)
    processes = join_processes() if backend == "native" else Processes()
    results: dict[str, dict[str, Result]] = {}
    try:
        for name in (*params.checkpoint, *params.hf_model):
            if isinstance(file, FoundryFile):
                results[name] = _score_with_foundry(name, params, choice, file)
            elif isinstance(file, TaskFile):
                results[name] = _score_natively(name, params, choice, file, processes)
            else:
                results[name] = _score_with_harness(name, params, choice, file)
            for path in params.out if _is_first() else ():  # after each, so that a failure in the next keeps what there is
                write_table(results, path, references)
    finally:
        if _is_first() and results:
            print(markdown_table(results, references))
    return 0


def _is_first() -> bool:
    """Whether this process speaks for all."""
    return os.environ.get("RANK", "0") == "0"


def _open(name: str, params: EvalParams, choice: ModelChoice, device: str | None) -> OpenModel:
    from open_lm.evaluation.models import open_model

    hf = name in params.hf_model
    tokenizer = None if hf and params.checkpoint else params.tokenizer
    opened = open_model(name, hf=hf, choice=choice, tokenizer=tokenizer, device=device)
    _say(f"{name}: tokenizer {opened.tokenizer.name}")
    return opened


def _check_composer(params: EvalParams, file: FoundryFile) -> None:
    """Raises UserError for what Composer's trainer can't do, before a model is loaded."""
    device, own = choose_device(params.device), os.environ.get("LOCAL_RANK", "0")
    _, _, index = device.partition(":")
    problems = []
    if device.startswith("cuda") and index not in ("", own):
        problems.append(
            f"--device {device}: LLM Foundry's trainer takes cuda:{own} in this process; set CUDA_VISIBLE_DEVICES={index} and give "
            "--device cuda, or --backend native"
        )
    if device == "cpu" and (params.precision or file.precision) == "amp_bfloat16":
        named = "--precision amp_bfloat16" if params.precision else f"--eval-yaml {params.eval_yaml}: precision amp_bf16"
        problems.append(f"{named}: LLM Foundry's trainer has it on a GPU only; give --precision fp32, or --backend native")
    if problems:
        raise UserError(problems)


def _score_with_foundry(name: str, params: EvalParams, choice: ModelChoice, file: FoundryFile) -> dict[str, Result]:
    from open_lm.evaluation.foundry.bridge import BridgeOptions, score_entries

    opened = _open(name, params, choice, "cpu")  # Composer's trainer moves it
    options = BridgeOptions(
        max_seq_len=params.max_seq_len or file.max_seq_len or opened.seq_len,
        precision=params.precision or file.precision,
        device=choose_device(params.device),
        limit=params.limit,
        cut=params.cut,
    )

    def report(task: str, result: Result, longest: int) -> None:
        size = f"longest request {longest} tokens, {result.seconds:.1f} s"
        _say(f"{name}: {task}: {result.accuracy:.4f} ({result.questions} questions, {size})")

    return score_entries(opened.model, opened.tokenizer, file, options, report, opened.declared, lambda line: _say(f"{name}: {line}"))


def _score_natively(name: str, params: EvalParams, choice: ModelChoice, file: TaskFile, processes: Processes) -> dict[str, Result]:
    from open_lm.evaluation.benchmark import score_tasks
    from open_lm.evaluation.scorer import ScorerOptions

    opened = _open(name, params, choice, params.device)

    def report(task: str, result: Result) -> None:
        _say(f"{name}: {task}: {result.accuracy:.4f} ({result.questions} questions, {result.seconds:.1f} s)")

    return score_tasks(
        opened.model,
        opened.tokenizer,
        file.tasks,
        max_seq_len=params.max_seq_len or file.max_seq_len or opened.seq_len,
        options=ScorerOptions(params.batch_tokens, params.precision or file.precision, processes),
        limit=params.limit,
        report=report,
        tell=lambda line: _say(f"{name}: {line}"),
    )


def _score_with_harness(name: str, params: EvalParams, choice: ModelChoice, tasks: HarnessTasks) -> dict[str, Result]:
    from open_lm.evaluation.lm_eval_backend import score_harness_tasks
    from open_lm.evaluation.scorer import ScorerOptions

    opened = _open(name, params, choice, params.device)
    return score_harness_tasks(
        opened.model,
        opened.tokenizer,
        tasks,
        ScorerOptions(params.batch_tokens, params.precision or "fp32"),
        include_path=params.include_path,
        num_fewshot=params.num_fewshot,
        limit=params.limit,
        max_length=params.max_seq_len,
        begin=opened.declared.begin,
        tell=lambda line: _say(f"{name}: {line}"),
    )


def _say(line: str) -> None:
    if _is_first():
        print(line, file=sys.stderr, flush=True)
