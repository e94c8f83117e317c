"""The work behind `eval/eval_openlm_ckpt.py`: options, a backend, checkpoints one after the other, a table.

Backends: `native` scores in this environment; `llm-foundry` on LLM Foundry's own evaluators, here where they are installed, else by
the same command in the environment that has them.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, cast

from open_lm import __version__, command_line, storage
from open_lm.device import choose_device
from open_lm.evaluation import published
from open_lm.evaluation.foundry import environment
from open_lm.evaluation.foundry.entries import FoundryFile, read_entries
from open_lm.evaluation.hf_tokenizer import hf_source
from open_lm.evaluation.precision import Precision
from open_lm.evaluation.result import Result
from open_lm.evaluation.table import Results, markdown_table, read_results
from open_lm.evaluation.table_files import check_ending, write_table
from open_lm.evaluation.tasks import Task, TaskFile, read_task_file
from open_lm.params.check import ABSENT
from open_lm.params.fields import Problems, UserError, counted, given_options, options_of, parse_topics
from open_lm.params.training import ArchitectureParams
from open_lm.progress import Progress, say
from open_lm.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from open_lm.evaluation.models import ModelChoice, OpenModel
    from open_lm.evaluation.processes import Processes

    Done = Callable[[Any, dict[str, Result]], None]

HarnessTasks = tuple[str, ...]
"""Names of lm-evaluation-harness's tasks."""
AnyFile = TaskFile | FoundryFile | HarnessTasks
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
    allow_tokenizer_mismatch: bool = False
    """Score a model with a --tokenizer that is known to be another one than its own."""
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
    """Write the table to these files, anew after each task; the ending says how: .json (what compare.py reads), .csv, .md, .png. Tasks
    whose results are in the .json are not scored again where checkpoint, task, data and options are the same."""
    overwrite: bool = False
    """Score all tasks anew, whatever --out holds."""
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
        environment.run_there(python, sys.argv[1:] if argv is None else argv, params.device)
    if backend == "lm-eval":
        os.environ["TQDM_DISABLE"] = "1"  # before it is imported: lm-eval's bars go to pipes, too
    hub = Problems()
    for name in params.hf_model:
        hub.attempt(hf_source, name)
    if params.tokenizer:
        hub.attempt(load_tokenizer, params.tokenizer)
    hub.raise_any()
    from open_lm.evaluation.benchmark import data_problems
    from open_lm.evaluation.models import ModelChoice
    from open_lm.evaluation.processes import Processes, join_processes

    if isinstance(file, FoundryFile):
        _check_composer(params, file)
    kernel = flags.pop("attn_name", "auto")
    choice = ModelChoice(params.model_config or params.model, flags, kernel, params.allow_tokenizer_mismatch)
    choice.check(params.checkpoint, params.tokenizer, () if params.checkpoint else params.hf_model)
    problems = data_problems(_with_rows(file))
    if problems:
        raise UserError([f"--eval-yaml {params.eval_yaml}: {problem}" for problem in problems])
    _say(f"backend {backend}")
    references = published.references(params.reference)
    processes = join_processes() if backend == "native" else Processes()
    if any(path.endswith(".json") for path in params.out):
        command_line.hint("; the same command goes on with the tasks that --out has not")
    before = processes.merge({processes.rank: _kept(params, backend)})[0]
    names = (*params.checkpoint, *params.hf_model)
    columns = {name: _Column.of(_inputs(name, params, flags, file, processes), before.get(name, {})) for name in names}

    def results() -> Results:
        return {name: column.results for name, column in columns.items() if column.results}

    def write() -> None:
        for path in params.out if _is_first() else ():
            write_table(results(), path, references)

    def keep(column: _Column, task: Any, scored: Mapping[str, Result]) -> None:
        column.add(task, scored)
        write()

    try:
        with Progress("evaluation", len(columns), "models") as shown:
            for name, column in columns.items():
                for key, one in column.results.items():
                    _say(f"{name}: {key}: {one.accuracy:.4f} ({counted(one.questions, 'question')}; from --out)")
                missing, done = column.missing(), partial(keep, column)
                if not missing:
                    _say(f"{name}: nothing to score, --out holds all of it")
                elif isinstance(file, FoundryFile):
                    _score_with_foundry(name, params, choice, replace(file, entries=missing), done)
                elif isinstance(file, TaskFile):
                    _score_natively(name, params, choice, replace(file, tasks=missing), processes, done)
                else:
                    _score_with_harness(name, params, choice, missing, done)
                shown.done += 1
        write()
    finally:
        if _is_first() and (told := results()):
            print(markdown_table(told, references))
    return 0


def _with_rows(file: TaskFile | FoundryFile | HarnessTasks) -> Sequence[Task]:
    """The tasks whose rows lie in files. LLM Foundry's own reader makes two questions of a row with half a surrogate pair, say."""
    if isinstance(file, TaskFile):
        return file.tasks
    entries = file.entries if isinstance(file, FoundryFile) else ()
    return [Task(e.label, e.dataset_uri, e.icl_task_type, has_categories=e.has_categories) for e in entries if "hf://" not in e.dataset_uri]


def _kept(params: EvalParams, backend: Backend) -> Results:
    """What an earlier start has left in --out. LLM Foundry's processes, which share nothing before they score, each read it; those of
    several machines keep nothing, since some may not have it.
    """
    if backend == "llm-foundry" and os.environ.get("LOCAL_WORLD_SIZE") != os.environ.get("WORLD_SIZE"):
        return {}
    path = next((path for path in params.out if path.endswith(".json") and storage.local_path(path).exists()), None)
    return {} if path is None or params.overwrite else read_results(path)


@dataclass
class _Column:
    """Results of one model, whichever start of the command they are of.

    `tasks` by the hash of what decides their results, which the results have too.
    """

    tasks: dict[str, Any]
    results: dict[str, Result]

    @classmethod
    def of(cls, tasks: dict[str, Any], before: Mapping[str, Result]) -> _Column:
        return cls(tasks, {key: one for key, one in before.items() if one.inputs in tasks})

    def missing(self) -> tuple[Any, ...]:
        """Tasks that are still to be scored."""
        there = {one.inputs for one in self.results.values()}
        return tuple(task for inputs, task in self.tasks.items() if inputs not in there)

    def add(self, task: Any, scored: Mapping[str, Result]) -> None:
        """Keep the results of a whole task, in the order of the tasks."""
        order = [*self.tasks]
        inputs = next(one for one in order if self.tasks[one] == task)
        self.results |= {key: replace(one, inputs=inputs) for key, one in scored.items()}
        self.results = dict(sorted(self.results.items(), key=lambda item: order.index(item[1].inputs)))


def _inputs(name: str, params: EvalParams, flags: ArchitectureFlags, file: AnyFile, processes: Processes) -> dict[str, Any]:
    """The tasks by the hash of what decides their results: the first process's, since the clocks of machines may differ."""
    from open_lm.checkpoint.load import find_weights

    own = ("limit", "max_seq_len", "precision", "num_fewshot", "model", "cut")
    told: dict[str, Any] = {key: getattr(params, key) for key in own}
    told |= {"version": __version__, "flags": flags, "backend": choose_backend(params.backend, bool(params.tasks))}
    paths = [find_weights(name)[0] if name in params.checkpoint else name, params.tokenizer, params.model_config, params.include_path]
    told["files"] = [_stamp(path) for path in paths if path]
    tasks: tuple[Any, ...]
    if isinstance(file, tuple):
        tasks, told["lm_eval"] = file, importlib.metadata.version("lm_eval")
    else:
        tasks = file.entries if isinstance(file, FoundryFile) else file.tasks
        told["file"] = {key: value for key, value in vars(file).items() if key not in ("tasks", "entries")}
    hashes = []
    for task in tasks:
        data = [task] if isinstance(task, str) else [asdict(task), _stamp(task.dataset_uri)]
        hashes.append(hashlib.sha256(json.dumps([told, *data], sort_keys=True, default=str).encode()).hexdigest()[:16])
    return dict(zip(processes.merge({processes.rank: hashes})[0], tasks, strict=True))


def _stamp(path: str) -> list[Any]:
    """What changes when a file does, or one of a folder; of any other name itself."""
    if not storage.is_remote(path) and (folder := storage.local_path(path)).is_dir():
        return [path, *(_stamp(str(one)) for one in sorted(folder.rglob("*")) if one.is_file())]
    try:
        stored = storage.stat(path)
        return [path, stored.size, stored.stamp]
    except (OSError, ValueError):
        return [path]


def _is_first() -> bool:
    """Whether this process speaks for all."""
    return os.environ.get("RANK", "0") == "0"


def _open(name: str, params: EvalParams, choice: ModelChoice, device: str | None) -> OpenModel:
    from open_lm.evaluation.models import open_model

    hf = name in params.hf_model
    tokenizer = None if hf and params.checkpoint else params.tokenizer
    opened = open_model(name, hf=hf, choice=choice, tokenizer=tokenizer, device=device)
    _say(f"{name}: tokenizer {opened.tokenizer.name}{'' if opened.own_tokenizer else '; the checkpoint carries none'}")
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


def _score_with_foundry(name: str, params: EvalParams, choice: ModelChoice, file: FoundryFile, done: Done) -> None:
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
        _say(f"{name}: {task}: {result.accuracy:.4f} ({counted(result.questions, 'question')}, {size})")

    score_entries(opened.model, opened.tokenizer, file, options, report, opened.declared, lambda line: _say(f"{name}: {line}"), done)


def _score_natively(name: str, params: EvalParams, choice: ModelChoice, file: TaskFile, processes: Processes, done: Done) -> None:
    from open_lm.evaluation.benchmark import score_tasks
    from open_lm.evaluation.scorer import ScorerOptions

    opened = _open(name, params, choice, params.device)

    def report(task: str, result: Result) -> None:
        _say(f"{name}: {task}: {result.accuracy:.4f} ({counted(result.questions, 'question')}, {result.seconds:.1f} s)")

    score_tasks(
        opened.model,
        opened.tokenizer,
        file.tasks,
        max_seq_len=params.max_seq_len or file.max_seq_len or opened.seq_len,
        options=ScorerOptions(params.batch_tokens, params.precision or file.precision, processes),
        limit=params.limit,
        report=report,
        tell=lambda line: _say(f"{name}: {line}"),
        done=done,
    )


def _score_with_harness(name: str, params: EvalParams, choice: ModelChoice, tasks: HarnessTasks, done: Done) -> None:
    from open_lm.evaluation.lm_eval_backend import score_harness_tasks
    from open_lm.evaluation.scorer import ScorerOptions

    opened = _open(name, params, choice, params.device)
    score_harness_tasks(
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
        done=done,
    )


def _say(line: str) -> None:
    if _is_first():
        say(line)
