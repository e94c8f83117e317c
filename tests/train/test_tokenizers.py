"""Shards, validation shards, checkpoints and tasks of two tokenizers: refused before anything starts, with both names and hashes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from open_lm.checkpoint.load import load_model
from open_lm.data.inspect import batch
from open_lm.tokenizer import Tokenizer, load_tokenizer

Main = Callable[..., int]


def tokenizer(folder: Path, last: str, template: str | None = None, eot: str = "<|endoftext|>") -> Tokenizer:
    """A tokenizer.json of 64 words in a folder, with what the preprocessor leaves beside it; only the last word differs."""
    import tokenizers
    from tokenizers import models, pre_tokenizers

    vocabulary = {**{f"w{i}": i for i in range(62)}, eot: 62, last: 63}
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "stats.json").write_text(json.dumps({"tokenizer": {"eot_token": eot}}))
    if template:
        config = {"bos_token": "w1", "eos_token": "w2", "chat_template": template}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return load_tokenizer(str(folder), eot)


def test_an_end_of_text_that_only_the_preprocessor_was_told_is_that_of_the_run(bench: Any, main_here: Main) -> None:
    """Of runs of version 0.3 too, whose run states have its id alone."""
    tokenizer(bench.folder / "shards", "one", eot="END")
    assert main_here("a", "--epochs", "1") == 0
    folder = bench.folder / "logs/a/checkpoints"
    (state,) = folder.glob("step_*")
    values = json.loads((state / "state.json").read_text())
    (state / "state.json").write_text(
        json.dumps({**values, "tokenizer": {name: values["tokenizer"][name] for name in ("sha256", "eot_id")}})
    )
    assert main_here("a", "--epochs", "2", "--lr-scheduler", "const", "--resume", "latest") == 0
    assert main_here("b", "--epochs", "1", "--pretrained", str(state)) == 0
    _, carried = load_model(state)
    assert carried and (carried.eot_token, carried.eot_id) == ("END", 62)


@pytest.fixture
def other(bench: Any) -> str:
    """Shards of another tokenizer; those of the bench get one, too."""
    tokenizer(bench.folder / "shards", "one")
    shutil.copytree(bench.folder / "shards", bench.folder / "other")
    tokenizer(bench.folder / "other", "two")
    return str(bench.folder / "other/shard-0000000.tar")


def refused(code: int, capsys: pytest.CaptureFixture[str], *words: str) -> None:
    """Exit 2 with one line that has all the words, both hashes and the remedy."""
    assert code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert all(word in line for word in (*words, "--allow-tokenizer-mismatch")), line
    assert line.count("(sha256 ") == 2 and "is another one than" in line


def test_a_run_compares_shards_validation_shards_checkpoints_and_tasks(
    bench: Any, main_here: Main, other: str, capsys: pytest.CaptureFixture[str]
) -> None:
    named = str(bench.folder / "other/tokenizer.json")
    for dry in ([], ["--dry-run"]):
        refused(
            main_here("a", "--val-data", other, *dry),
            capsys,
            f"--val-data {other}: the tokenizer {bench.folder}/other (sha256",
            "of --train-data",
        )
    refused(main_here("a", "--tokenizer", named), capsys, "--train-data", f"of --tokenizer {named}")
    assert not (bench.folder / "logs").exists()
    assert main_here("a", "--epochs", "1", "--val-data", other, "--allow-tokenizer-mismatch") == 0
    assert "WARNING | --val-data" in bench.log("a") and "Tokenizer: " in bench.log("a")
    weights = str(bench.folder / "logs/a/checkpoints/epoch_1.pt")
    state = json.loads((bench.folder / "logs/a/checkpoints/step_10/state.json").read_text())
    assert state["tokenizer"]["sha256"] == load_tokenizer(str(bench.folder / "shards")).sha256
    from open_lm.main import main

    shutil.copy(named, bench.folder / "shards/tokenizer.json")
    flags = bench.flags("b")
    for start in ("--pretrained", "--average"):
        refused(main([*flags, start, weights]), capsys, "--train-data", f"of {start} {weights}")
    refused(main([*flags, "--resume", f"{bench.folder}/logs/a/checkpoints/step_10", "--new-data-plan"]), capsys, "of checkpoint ")
    more = ["--precision", "fp32", "--workers", "0", "--logs-dir", str(bench.folder / "logs"), "--name", "v", "--val-data", other]
    for named_by in (["--pretrained", weights], ["--resume", str(bench.folder / "logs/a/checkpoints/step_10")], ["--average", weights]):
        refused(main([*more, *named_by]), capsys, f"--val-data {other}", "of checkpoint")
    assert main([*more, "--pretrained", weights, "--allow-tokenizer-mismatch"]) == 0
    assert "WARNING | --val-data" in bench.log("v")


def test_a_checkpoint_that_is_fetched_late_is_compared_before_the_first_step(
    bench: Any, main_here: Main, other: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main_here("a", "--epochs", "1") == 0
    monkeypatch.setattr("open_lm.job.outline", lambda checkpoint: (None, "s3://bucket/epoch_1.pt"))
    monkeypatch.setattr("open_lm.job.carried_tokenizer", lambda file, path: None)
    shutil.copy(bench.folder / "other/tokenizer.json", bench.folder / "shards/tokenizer.json")
    weights = str(bench.folder / "logs/a/checkpoints/epoch_1.pt")
    refused(main_here("b", "--pretrained", weights), capsys, f"--pretrained {weights}", "of --train-data")
    assert not (bench.folder / "logs/b/metrics.jsonl").exists()


def test_the_same_tokenizer_in_another_layout_stops_neither_resume_nor_inspection_and_another_one_does(
    bench: Any, main_here: Main, other: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_here("a", "--epochs", "1") == 0
    file = bench.folder / "shards/tokenizer.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps({**values, "truncation": {"max_length": 9, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}}))
    run = str(bench.folder / "logs/a")
    assert batch(run, 3).tokenizer is not None
    assert main_here("a", "--resume", "latest", "--epochs", "2") == 0
    shutil.copy(bench.folder / "other/tokenizer.json", file)
    refused(main_here("a", "--resume", "latest", "--epochs", "3"), capsys, "--train-data", "of checkpoint")
    with pytest.raises(ValueError, match=rf"--run {run}: row 16 .*: --train-data .* is another one than .* of --run {run}"):
        batch(run, 3)
    file.unlink()
    assert batch(run, 3).tokenizer is not None  # the run folder's
    assert main_here("a", "--resume", "latest", "--epochs", "3") == 0
    assert f"Tokenizer: {run} (sha256" in bench.log("a") and "carry none, so that nothing compares their ids" in bench.log("a")


def test_a_vocabulary_much_larger_than_the_tokenizer_is_said_once_and_a_smaller_one_refused(
    bench: Any, main_here: Main, other: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((bench.folder / "tiny.json").read_text())
    for size in (60, 4096):
        (bench.folder / f"{size}.json").write_text(json.dumps({**config, "vocab_size": size}))
    assert main_here("a", "--dry-run", "--model", str(bench.folder / "4096.json")) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if "has a vocabulary of 4096" in line]
    assert len(said) == 1 and "the tokenizer 64 ids: 258,048 parameters are of no use; give a model.json with vocab_size 64" in said[0]
    assert main_here("a", "--dry-run") == 0
    assert "has a vocabulary of" not in capsys.readouterr().out
    assert main_here("a", "--dry-run", "--model", str(bench.folder / "60.json"), "--val-data", other) == 2
    error = capsys.readouterr().err
    assert "--train-data" in error and "has ids up to 63, the model knows 60" in error and "--val-data" in error


def test_the_chat_template_of_shards_is_in_run_folder_checkpoints_and_loaded_models(bench: Any, main_here: Main) -> None:
    from open_lm import load_model

    template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    plain, chats, more = (bench.folder / name for name in ("shards", "chats", "more"))
    shutil.copytree(plain, chats)
    shutil.copytree(plain, more)
    tokenizer(plain, "one")
    tokenizer(chats, "one", template)
    tokenizer(more, "one", "{{ messages }}")
    data = [f"{folder}/shard-000000{{0..3}}.tar" for folder in (plain, chats, more)]
    assert main_here("a", "--epochs", "1", "--train-data", *data) == 0
    assert "the sources have 2 chat templates; run and checkpoints carry the first of them" in bench.log("a")
    run = bench.folder / "logs/a"
    assert json.loads((run / "tokenizer_config.json").read_text())["chat_template"] == template
    shutil.copytree(run / "checkpoints/step_10", bench.folder / "moved/checkpoints/step_10")
    shutil.copy(run / "tokenizer.json", bench.folder / "moved/tokenizer.json")
    for place in (run / "checkpoints/epoch_1.pt", run / "checkpoints/step_10", run, bench.folder / "moved"):
        found = load_model(place)[1]
        assert found is not None and found.chat_template == template
        assert (found.special, found.eot_token) == ({"bos_token": "w1", "eos_token": "w2"}, "<|endoftext|>")
    about = torch.load(run / "checkpoints/epoch_1.pt", weights_only=True)
    assert about["eot_id"] == 62
