"""A failure in a task on one process is known to all of them, and the next task is scored by all."""

from __future__ import annotations

import datetime
import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from open_lm.evaluation import tasks_in_training
from open_lm.evaluation.benchmark import load_data_sets, score_tasks
from open_lm.evaluation.in_training import Beside
from open_lm.evaluation.open_tasks import encode_tasks
from open_lm.evaluation.packed import PackedDataSet
from open_lm.evaluation.scorer import ScorerOptions
from open_lm.evaluation.tasks import Task, TaskFile
from open_lm.evaluation.tasks_in_training import TasksConfig, TasksInTraining
from open_lm.model.config import ModelConfig
from open_lm.model.transformer import Transformer
from open_lm.tokenizer import Tokenizer


class _End:
    step, epoch, tokens = 7, 1, 700


def _fails_on(rank: int, label: str, function: Any) -> Any:
    def maybe(task: Task, *rest: Any) -> Any:
        if task.label == label and torch.distributed.get_rank() == rank:
            raise OSError(f"{label} is gone")
        return function(task, *rest)

    return maybe


def _score_on_a_process(rank: int, folder: str, weights: dict[str, Tensor], tokenizer_json: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", RANK=str(rank), WORLD_SIZE="2")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model = Transformer(ModelConfig(hidden_dim=32, n_layers=2, n_heads=2, seq_len=64, vocab_size=300))
    model.load_state_dict(weights)
    model.train()
    tasks_in_training.grade = _fails_on(0, "data", tasks_in_training.grade)  # type: ignore[attr-defined]
    tasks_in_training.grade = _fails_on(1, "forward", tasks_in_training.grade)
    tasks = tuple(Task(label, f"{folder}/rows.jsonl", "multiple_choice") for label in ("data", "forward", "whole"))
    told: list[Any] = []
    opened = encode_tasks(TaskFile(tasks, None, "fp32"), Tokenizer(tokenizer_json, "tiny"), 64)
    config = TasksConfig(1, 1, "fp32", rank, 2)
    TasksInTraining(model, opened, config, Path(folder), lambda metrics, step: told.append((metrics, step))).after_epoch(_End())
    assert model.training
    assert told == [] or rank == 0
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_a_failure_on_one_process_leaves_the_others_in_step(model: Transformer, tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows = [{"query": f"what a {word}", "choices": ["hat", "cat on a mat"], "gold": 0} for word in ("day", "dog", "mat", "cat", "hat")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    torch.multiprocessing.spawn(_score_on_a_process, (str(tmp_path), model.state_dict(), tokenizer.json_text), nprocs=2)
    line = json.loads((tmp_path / "eval_tasks.jsonl").read_text())
    assert line["failed"] == {
        "data/0-shot": "process 0: OSError: data is gone",
        "forward/0-shot": "process 1: OSError: forward is gone",
    }
    assert line["results"].keys() == {"whole/0-shot"}
    assert line["results"]["whole/0-shot"]["questions"] == 5


def _fails_in_layer(model: Transformer, layer: int, at_pass: int) -> None:
    """As memory that gives out in the middle of a pass."""
    passes = iter(range(1, 1 << 30))

    def fail(*_: Any) -> None:
        if next(passes) == at_pass:
            raise torch.OutOfMemoryError("no memory left")

    model.layers[layer].feed_forward.register_forward_pre_hook(fail)


def _score_shards_on_a_process(rank: int, folder: str, weights: dict[str, Tensor], tokenizer_json: str) -> None:
    from torch.distributed.fsdp import fully_shard

    os.environ.update(MASTER_ADDR="127.0.0.1", RANK=str(rank), WORLD_SIZE="2")
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=30)
    )
    model = Transformer(ModelConfig(hidden_dim=32, n_layers=2, n_heads=2, seq_len=64, vocab_size=300))
    model.load_state_dict(weights)
    for block in model.layers:
        fully_shard(block)
    fully_shard(model)
    tasks_in_training.ScorerOptions = partial(ScorerOptions, batch_tokens=4)  # type: ignore[attr-defined,misc]
    _fails_in_layer(model, *((0, 1) if rank == 1 else (1, 3)))  # in the first task, and after the pass that mends in the second
    tasks = [Task(label, f"{folder}/rows.jsonl", "multiple_choice") for label in ("first", "second", "whole")]
    tasks.append(Task("answers", f"{folder}/rows.jsonl", "generation_task_with_answers"))
    opened = encode_tasks(TaskFile(tuple(tasks), None, "fp32"), Tokenizer(tokenizer_json, "tiny"), 64)
    batches: list[None] = []
    beside = Beside(progress=lambda: batches.append(None))
    scored = TasksInTraining(model, opened, TasksConfig(1, 1, "fp32", rank, 2), Path(folder), lambda metrics, step: None, beside=beside)
    scored.step.progress = lambda: None  # what is counted are the batches of the process's own
    scored.after_epoch(_End())
    Path(folder, f"batches{rank}").write_text(str(len(batches)))
    assert not any(part._get_fsdp_state()._fsdp_param_group.is_unsharded for part in [model, *model.layers])
    ids = torch.arange(40).view(2, 20)
    model(ids).logsumexp(-1).mean().backward()  # training goes on
    assert all(parameter.grad is not None for parameter in model.parameters())
    whole = Transformer(model.config)
    whole.load_state_dict(weights)
    assert torch.allclose(model(ids), whole(ids), atol=1e-5)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_memory_that_gives_out_on_one_process_of_a_sharded_model_ends_that_task_alone(
    model: Transformer, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    rows = [{"query": f"what a {word}", "choices": ["hat", "cat on a mat"], "gold": 0} for word in ("day", "dog", "mat", "cat", "hat")]
    answers = [{**row, "context": row["query"], "answer": "a hat"} for row in rows]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answers))
    torch.multiprocessing.spawn(_score_shards_on_a_process, (str(tmp_path), model.state_dict(), tokenizer.json_text), nprocs=2)
    line = json.loads((tmp_path / "eval_tasks.jsonl").read_text())
    assert line["failed"] == {
        "first/0-shot": "process 1: OutOfMemoryError: no memory left",
        "second/0-shot": "process 0: OutOfMemoryError: no memory left",
    }
    tasks = [Task("whole", str(tmp_path / "rows.jsonl"), "multiple_choice")]
    tasks.append(Task("answers", str(tmp_path / "rows.jsonl"), "generation_task_with_answers"))
    expected = score_tasks(model, tokenizer, tasks, max_seq_len=64, options=ScorerOptions())
    assert {name: row["accuracy"] for name, row in line["results"].items()} == {name: one.accuracy for name, one in expected.items()}
    shares = [int((tmp_path / f"batches{rank}").read_text()) for rank in range(2)]
    assert min(shares) > 2 and abs(shares[0] - shares[1]) <= 4  # at most one in each task


def test_batches_are_progress(model: Transformer, tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows = [{"query": f"what a {word}", "choices": ["hat", "cat on a mat"], "gold": 0} for word in ("day", "dog", "mat", "cat", "hat")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    opened = encode_tasks(TaskFile((Task("a", str(tmp_path / "rows.jsonl"), "multiple_choice"),), None, "fp32"), tokenizer, 64)
    calls: list[None] = []
    beside = Beside(progress=lambda: calls.append(None))
    TasksInTraining(model, opened, TasksConfig(1, 1, "fp32"), tmp_path, lambda metrics, step: None, beside=beside).after_epoch(_End())
    assert len(calls) == 1


def test_data_sets_come_back_from_little_memory_as_they_were(tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows = [{"query": f"what a {word}", "choices": ["hat", "cat on a mat"][: 1 + n], "gold": n} for n, word in enumerate(("day", "dog"))]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "answers.jsonl").write_text('{"context": "what a", "answer": "day", "aliases": ["dog", "cat"]}\n')
    choices = Task("a", str(tmp_path / "rows.jsonl"), "multiple_choice")
    answers = Task("b", str(tmp_path / "answers.jsonl"), "generation_task_with_answers")
    for task in (choices, answers):
        for data in load_data_sets(task, tokenizer, 64):
            assert PackedDataSet.of(data).unpack() == data
    whole = encode_tasks(TaskFile((choices, answers), None, "fp32"), tokenizer, 64)
    (tmp_path / "answers.jsonl").write_text('{"context": "what a", "answer": "day", "aliases": ["dog", "hat"]}\n')
    assert encode_tasks(TaskFile((choices, answers), None, "fp32"), tokenizer, 64).digest() != whole.digest()


def test_processes_that_read_other_data_are_told_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    from open_lm import scoring
    from open_lm.params import Problems, parse_params

    params, _ = parse_params(["--val-data", "v.tar", "--pretrained", "a.pt", "--eval-tasks", "t.yaml"])
    for digests, count in ((["", "a"], 0), (["a"], 0), (["a", "b"], 1)):
        monkeypatch.setattr(scoring, "from_all", lambda mine, digests=digests: digests)
        problems = Problems()
        scoring.check_same(problems, params, None)
        assert len(problems.found) == count
    assert problems.found == ["--eval-tasks t.yaml: the processes read different data; give all machines the same files"]


def test_a_compiled_model_is_scored_as_it_is(model: Transformer, tokenizer: Tokenizer, tmp_path: Path) -> None:
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = Transformer(model.config)
    for block in compiled.layers:
        block.compile(backend=backend)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"query": "what a", "choices": ["hat", "day"], "gold": 0}))
    opened = encode_tasks(TaskFile((Task("a", str(tmp_path / "rows.jsonl"), "multiple_choice"),), None, "fp32"), tokenizer, 64)
    TasksInTraining(compiled, opened, TasksConfig(1, 1, "fp32"), tmp_path, lambda metrics, step: None).after_epoch(_End())
    assert not graphs
    compiled(torch.zeros(1, 8, dtype=torch.int64))
    assert graphs
