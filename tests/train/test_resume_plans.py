"""What a resumed run may change: its batch size freely, its data with --new-data-plan; and the rows that it then reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from open_lm.data import dataset, rows
from open_lm.params import OptimizerParams, UserError, parse_params
from open_lm.shards.manifest import write_manifest
from open_lm.shards.tar import write_shard
from open_lm.train.schedule import RunLength, make_schedule

Main = Callable[..., int]
Read = list[tuple[int, tuple[int, ...]]]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Read:
    """Every row that training reads: its number in the plan, and its tokens."""
    found: Read = []
    original = rows._PlannedReader.read

    def recorded(self: Any, numbers: np.ndarray) -> np.ndarray:
        tokens = original(self, numbers)
        found.extend(zip(numbers.tolist(), map(tuple, tokens.tolist())))
        return tokens

    monkeypatch.setattr(rows._PlannedReader, "read", recorded)
    return found


def run(bench: Any, name: str, *more: str, without: tuple[str, ...] = ("--train-data",)) -> int:
    """`main_here` without some of the bench's own flags."""
    from open_lm.main import main

    flags = bench.flags(name, "--workers", "0")
    for flag in without:
        at = flags.index(flag)
        del flags[at : at + 2]
    return main([*flags, *more])


def state(bench: Any, name: str, step: int) -> dict[str, Any]:
    return json.loads((bench.folder / f"logs/{name}/checkpoints/step_{step}/state.json").read_text())


@pytest.mark.parametrize(
    ("batch", "steps", "weights"), [(16, [15, 20], [2, 3]), (4, [30, 50], [2, 3]), (12, [16, 23], [2, 3]), (50, [11, 13], [2, 3])]
)
def test_another_batch_size_reads_the_very_same_following_rows(
    bench: Any, main_here: Main, read: Read, batch: int, steps: list[int], weights: list[int]
) -> None:
    assert main_here("whole") == 0
    whole = dict(read)
    bench.copy_at("whole", "other", 10)
    read.clear()
    assert main_here("other", "--resume", "latest", "--global-batch-size", str(batch)) == 0
    numbers = [number for number, _ in read]
    assert numbers == list(range(80, 80 + len(numbers))) and 240 - batch < 80 + len(numbers) <= 240
    assert all(whole[number] == row for number, row in read)
    checkpoints = bench.folder / "logs/other/checkpoints"
    assert sorted(int(p.name[5:]) for p in checkpoints.glob("step_*")) == [10, *steps]
    assert sorted(p.name for p in checkpoints.glob("epoch_*")) == [f"epoch_{n}.pt" for n in weights]
    assert f"--global-batch-size was 8, is {batch} from step 10 on" in bench.log("other")
    assert [b["global_batch_size"] for b in state(bench, "other", steps[-1])["batches"]] == [8, batch]


def test_the_learning_rate_goes_on_where_it_was_when_the_batch_size_changes(bench: Any, main_here: Main) -> None:
    assert main_here("whole") == 0
    bench.copy_at("whole", "other", 10)
    assert main_here("other", "--resume", "latest", "--global-batch-size", "16") == 0
    assert bench.metrics("other", "lr")[:10] == bench.metrics("whole", "lr")[:10]
    assert bench.metrics("other", "lr")[10:] == bench.metrics("whole", "lr")[10::2]


def test_a_run_with_two_batch_sizes_resumes_bit_equal(bench: Any, main_here: Main) -> None:
    assert main_here("a") == 0
    bench.copy_at("a", "whole", 10)
    flags = ("--resume", "latest", "--global-batch-size", "12", "--save-every-steps", "3")
    assert main_here("whole", *flags) == 0
    bench.copy_at("whole", "again", 18)
    assert main_here("again", *flags) == 0
    assert bench.metrics("again") == bench.metrics("whole")
    assert state(bench, "again", 23)["batches"] == state(bench, "whole", 23)["batches"]


def test_no_epoch_is_completed_twice_or_left_out_when_the_batch_size_changes(bench: Any, main_here: Main) -> None:
    flags = ("--train-num-samples", str(20 * 32), "--epochs", "2", "--save-every-steps", "1", "--global-batch-size")
    for name, first, step, then, steps in (
        ("twice", "8", 2, "2", {"epoch_2.pt": 14}),
        ("out", "2", 9, "8", {"epoch_1.pt": 10, "epoch_2.pt": 11}),
    ):
        assert main_here(name, *flags, first) == 0
        bench.copy_at(name, f"{name}-b", step)
        assert main_here(f"{name}-b", *flags, then, "--resume", "latest") == 0
        saved = (bench.folder / f"logs/{name}-b/checkpoints").glob("epoch_*")
        assert {p.name: torch.load(p, weights_only=True)["step"] for p in saved} == steps


def test_a_rest_of_less_than_a_batch_is_refused_and_a_finished_run_is_not(
    bench: Any, main_here: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_here("a", "--save-every-steps", "29") == 0
    bench.copy_at("a", "b", 29)
    assert main_here("b", "--resume", "latest", "--global-batch-size", "16") == 2
    assert "--global-batch-size 16: 8 sequences are left of the run, less than one batch; resume with 8 or less" in capsys.readouterr().err
    assert main_here("a", "--resume", "latest", "--global-batch-size", "16") == 0
    assert "the run is finished (30 steps)" in bench.log("a")


@pytest.mark.parametrize("flags", [[], ["--dataset-resampled"]])
def test_openlm_defect_17_a_resumed_run_sees_the_rows_that_it_would_have_seen(
    bench: Any, main_here: Main, read: Read, flags: list[str]
) -> None:
    assert main_here("whole", *flags) == 0
    whole = list(read)
    bench.copy_at("whole", "again", 10)
    read.clear()
    assert main_here("again", "--resume", "latest", *flags) == 0
    assert read == whole[80:]
    assert len(set(whole)) == 240


def test_a_run_state_of_version_0_1_goes_on(bench: Any, main_here: Main) -> None:
    assert main_here("whole") == 0
    bench.copy_at("whole", "old", 10)
    file = bench.folder / "logs/old/checkpoints/step_10/state.json"
    values = json.loads(file.read_text())
    for name in ("epoch", "sequences_per_epoch", "plans", "batches"):
        del values[name]
    del values["plan"]["sources"][0]["content"]
    file.write_text(json.dumps(values))
    assert main_here("old", "--resume", "latest") == 0
    assert bench.metrics("old") == bench.metrics("whole")
    assert state(bench, "old", 30)["plans"] == state(bench, "whole", 30)["plans"]


@pytest.mark.slow
def test_a_run_of_version_0_3_goes_on_with_a_source_for_each_shard_of_an_unquoted_glob(
    bench: Any, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bench.folder)
    shards = ("--multiple-data-passes", "--train-data", *(f"shards/shard-000000{i}.tar" for i in range(4)))
    with monkeypatch.context() as old:
        old.setattr(dataset, "join_shards", lambda names: names)
        assert run(bench, "whole", *shards) == 0
    whole = list(read)
    bench.copy_at("whole", "again", 10)
    read.clear()
    assert run(bench, "again", "--resume", "latest", *shards) == 0
    assert read == whole[80:] and "data: 4 sources read in passes" in bench.log("again")
    assert bench.metrics("again") == bench.metrics("whole")


def test_a_new_plan_begins_at_its_own_first_row_and_is_kept_beside_the_old_one(
    bench: Any, main_here: Main, read: Read, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_here("fresh", "--seed", "5") == 0
    fresh = list(read)
    assert main_here("a") == 0
    bench.copy_at("a", "b", 10)
    read.clear()
    flags = ("--seed", "5", "--save-every-steps", "4")
    assert main_here("b", "--resume", "latest", *flags) == 2
    error = capsys.readouterr().err
    assert "--seed was 0, is 5" in error and "or --new-data-plan to go on with the new data from here on" in error
    assert main_here("b", "--resume", "latest", "--new-data-plan", *flags) == 0
    assert read == fresh[:160]
    assert "--new-data-plan: from sequence 80 on, after step 10: --seed was 0, is 5" in bench.log("b")
    saved = state(bench, "b", 30)
    assert [(p["first"], p["plan"]["seed"]) for p in saved["plans"]] == [(0, 0), (80, 5)]
    assert saved["plan"] == saved["plans"][-1]["plan"] and saved["sequences"] == 240
    bench.copy_at("b", "c", 16)
    read.clear()
    assert main_here("c", "--resume", "latest", *flags) == 0
    assert read == fresh[48:160]
    assert state(bench, "c", 30)["plans"] == saved["plans"]
    bench.copy_at("b", "d", 16)
    assert main_here("d", "--resume", "latest") == 2
    assert "--seed was 5, is 0" in capsys.readouterr().err


def test_a_new_plan_of_too_few_rows_is_told_before_training(bench: Any, main_here: Main, capsys: pytest.CaptureFixture[str]) -> None:
    assert main_here("a") == 0
    bench.copy_at("a", "b", 10)
    small = ["--resume", "latest", "--new-data-plan", "--train-data", str(bench.folder / "shards/shard-0000001.tar")]
    assert run(bench, "b", *small) == 2
    assert "the run reads 160 rows" in capsys.readouterr().err
    assert run(bench, "b", *small, "--multiple-data-passes") == 0


def test_another_sequence_length_goes_on_with_a_new_plan(bench: Any, main_here: Main, capsys: pytest.CaptureFixture[str]) -> None:
    assert main_here("a") == 0
    bench.copy_at("a", "b", 10)
    config = json.loads((bench.folder / "tiny.json").read_text())
    (bench.folder / "short.json").write_text(json.dumps({**config, "seq_len": 16}))
    flags = ("--resume", "latest", "--model", str(bench.folder / "short.json"))
    assert main_here("b", *flags) == 2
    assert "the sequence length was 32, is 16" in capsys.readouterr().err
    assert main_here("b", *flags, "--new-data-plan") == 0
    assert bench.metrics("b", "step")[-1] == 10 + 40  # 5120 tokens are left, 128 a step
    assert bench.metrics("b", "tokens")[-1] == 3 * 80 * 32
    assert bench.metrics("b", "lr")[10::2] == pytest.approx(bench.metrics("a", "lr")[10:])


def test_other_tokens_in_shards_of_the_same_names_and_counts_are_refused(
    bench: Any, main_here: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_here("a") == 0
    bench.copy_at("a", "b", 10)
    parts = np.split(np.full((240, 33), 7, dtype=np.uint16), [50, 130, 150])
    entries = [write_shard(bench.folder / f"shards/shard-{i:07d}.tar", "npy", part) for i, part in enumerate(parts)]
    write_manifest(bench.folder / "shards/manifest.jsonl", entries)
    assert main_here("b", "--resume", "latest") == 2
    assert "the shards of source 0 have the same names and row counts, but another content" in capsys.readouterr().err
    assert main_here("b", "--resume", "latest", "--new-data-plan") == 0


def test_the_log_tells_the_processes_a_run_may_have_and_how_often_it_reads_its_sources(bench: Any, main_here: Main) -> None:
    assert main_here("a", "--global-batch-size", "12", "--data-streams", "24", "--epochs", "2") == 0
    log = bench.log("a")
    assert "This run goes on with 1, 2, 3, 4, 6, 12 processes" in log
    assert "0.3333 passes in 80 rows (an epoch), 0.65 in the 156 rows to read, 0 before" in log


def two_sources(bench: Any, *rows: int) -> list[str]:
    """Sources whose rows are all zeros, all ones, ..."""
    flags = ["--train-data"]
    for i, count in enumerate(rows):
        shard = bench.folder / f"source{i}/shard-0000000.tar"
        write_shard(shard, "npy", np.full((count, 33), i, dtype=np.uint16))
        flags.append(str(shard))
    return flags


def test_an_epoch_of_untold_length_ends_when_the_first_source_was_read_once(
    bench: Any, main_here: Main, read: Read, capsys: pytest.CaptureFixture[str]
) -> None:
    flags, untold = [*two_sources(bench, 40, 120), "--epochs", "1"], ("--train-data", "--train-num-samples")
    assert run(bench, "a", *flags, "--train-data-mix-weights", "0.3", "0.7", without=untold) == 0
    by_source = np.bincount([row[0] for _, row in read])
    assert by_source[0] in range(33, 41) and 80 < by_source[1] < 100
    assert "source0/shard-0000000.tar: 1 passes in" in bench.log("a")
    assert run(bench, "b", *flags, "--train-data-mix-weights", "0.9", "0.1", without=untold) == 2
    error = capsys.readouterr().err
    assert "--train-num-samples: needed for this mix" in error and "shard-0000000.tar with its 40 rows" in error
    assert run(bench, "b", *flags, "--train-data-mix-weights", "0.9", "0.1") == 2
    assert "with its 40 rows needs 2 passes" in capsys.readouterr().err


def test_several_epochs_and_sources_are_counted_together_before_training(
    bench: Any, main_here: Main, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*two_sources(bench, 90, 1000), "--train-data-mix-weights", "1", "1", "--epochs"]
    assert run(bench, "a", *flags, "3") == 2
    assert "source0/shard-0000000.tar with its 90 rows needs 2 passes; give --multiple-data-passes" in capsys.readouterr().err
    assert run(bench, "a", *flags, "2") == 0
    assert run(bench, "b", *flags, "3", "--multiple-data-passes") == 0


def test_a_new_plan_is_for_a_resumed_run_only() -> None:
    with pytest.raises(UserError, match="--new-data-plan: only with --resume"):
        parse_params(["--train-data", "x", "--new-data-plan"])


@given(st.integers(1, 200), st.integers(1, 20), st.integers(1, 50), st.integers(1, 50), st.data())
def test_epochs_after_a_change_end_with_the_last_whole_batch_inside_their_sequences(
    sequences: int, epochs: int, first: int, batch: int, data: st.DataObject
) -> None:
    step = data.draw(st.integers(0, RunLength(sequences, epochs, first).total_steps))
    length = RunLength(sequences, epochs, batch, step, step * first, Fraction(first))
    assert length.sequences_at(step) == step * first
    for epoch in range(epochs):
        if sequences * (epoch + 1) >= step * first:
            end = length.epoch_end(epoch)
            assert length.sequences_at(end) <= sequences * (epoch + 1) < length.sequences_at(end + 1)
            assert length.epochs_done(end) >= epoch + 1
            assert end == step or length.epochs_done(end - 1) <= epoch
    assert length.schedule_end(epochs) == RunLength(sequences, epochs, first).total_steps


@given(st.sampled_from(["cosine", "const", "const-cooldown"]), st.integers(1, 40), st.integers(1, 64), st.integers(0, 50))
def test_the_schedule_follows_the_sequences(scheduler: str, first: int, batch: int, step: int) -> None:
    cooldown = 2 if scheduler == "const-cooldown" else None
    params = OptimizerParams(lr=1.0, warmup=7, lr_scheduler=scheduler, epochs_cooldown=cooldown)  # type: ignore[arg-type]
    before, after = RunLength(100 * first, 5, first), RunLength(100 * first, 5, batch, step, step * first, Fraction(first))
    old, new = make_schedule(params, before), make_schedule(params, after)
    assert new(step) == old(step)
    for later in range(0, 40 * first, first):
        assert new(step + later) == pytest.approx(old(step + later // first * batch))


def test_rows_lost_before_a_resume_count_after_it(bench: Any, main_here: Main, capsys: pytest.CaptureFixture[str]) -> None:
    (bench.folder / "shards/shard-0000002.tar").unlink()  # 20 rows of the 240
    flags = ("--save-every-steps", "5", "--data-tolerate-error-p")
    assert main_here("a", *flags, "0.1") == 0
    assert bench.metrics("a", "lost_rows")[-1] == state(bench, "a", 30)["lost_rows"] == 20
    lost = state(bench, "a", 15)["lost_rows"]
    assert 0 < lost < 20
    bench.copy_at("a", "b", 15)
    assert main_here("b", "--resume", "latest", *flags, "0.1") == 0
    assert bench.metrics("b", "lost_rows") == bench.metrics("a", "lost_rows")
    bench.copy_at("a", "c", 15)
    assert main_here("c", "--resume", "latest", *flags, "0.08") == 1
    assert "more than --data-tolerate-error-p 0.08 of this process's 240 rows" in capsys.readouterr().err + bench.log("c")
