"""eval/eval_openlm_ckpt.py on every form of a checkpoint, its architecture flags, and what is refused before anything is scored."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from open_lm.checkpoint.convert import export_weights
from open_lm.checkpoint.run_state import RunState
from open_lm.checkpoint.state_writer import save_run_state
from open_lm.checkpoint.weights import write_weights
from open_lm.evaluation.command import parse_eval, run_eval
from open_lm.model.config import ModelConfig
from open_lm.model.transformer import Transformer
from open_lm.params.fields import UserError
from open_lm.tokenizer import Tokenizer

Score = Callable[..., dict[str, float]]


def random_model(**changes: Any) -> Transformer:
    torch.manual_seed(0)
    model = Transformer(ModelConfig(**{"hidden_dim": 32, "n_layers": 2, "n_heads": 2, "seq_len": 64, "vocab_size": 304, **changes}))
    model.init_weights()
    with torch.no_grad():
        model.output.weight.mul_(8)
    return model


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: a tokenizer and a task whose questions a random model answers partly."""
    (tmp_path / "tokenizer.json").write_text(tokenizer.json_text)
    rows = [{"query": f"a cat saw {i}", "choices": ["a hat", "a mat", f"the day {i}"], "gold": i % 3} for i in range(12)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "tasks.yaml").write_text(
        "icl_tasks:\n- {label: hats, dataset_uri: rows.jsonl, num_fewshot: [0, 1], icl_task_type: multiple_choice}\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def score(folder: Path) -> Score:
    """Runs the command; the accuracies of its first task by checkpoint."""

    def run(*arguments: str) -> dict[str, float]:
        common = ["--eval-yaml", "tasks.yaml", "--tokenizer", "tokenizer.json", "--device", "cpu", "--backend", "native"]
        assert run_eval([*common, "--out", "out.json", "--checkpoint", *arguments]) == 0
        return {name: found["hats/0-shot"]["accuracy"] for name, found in json.loads((folder / "out.json").read_text()).items()}

    return run


def state_folder(run: Path, model: Transformer) -> str:
    tensors = {f"model.{name}": value.detach() for name, value in model.named_parameters()}
    state = RunState(30, 240, 1920, 8, {"seed": 0, "seq_len": 8}, model.config.to_dict(), {"name": "run"}, epoch=3)
    return str(save_run_state(str(run / "checkpoints"), tensors, state))


def forms(folder: Path, model: Transformer) -> list[str]:
    """The same weights in every local form that carries its configuration."""
    write_weights(folder / "ours/checkpoints/epoch_2.pt", model.state_dict(), {"epoch": 2, "model_config": model.config.to_dict()})
    state = state_folder(folder / "sharded", model)
    weights = export_weights(state, str(folder / "weights"))
    return [str(folder / "ours/checkpoints/epoch_2.pt"), str(folder / "ours"), state, str(folder / "sharded"), str(weights)]


def bare_forms(folder: Path, weights: dict[str, Tensor]) -> list[str]:
    """The same weights as OpenLM's two generations left them, without a configuration."""
    prefixes = {"plain.pt": "", "ddp.pt": "module.", "compiled.pt": "_orig_mod.", "both.pt": "module._orig_mod."}
    for name, prefix in prefixes.items():
        state = {prefix + key: value for key, value in weights.items()}
        torch.save({"epoch": 1, "name": "x", "state_dict": state, "evaluation_loss": 2.5}, folder / name)
    torch.save(weights, folder / "bare.pt")
    return [*prefixes, "bare.pt"]


def test_every_form_of_a_checkpoint_has_the_same_scores(folder: Path, score: Score) -> None:
    model = random_model()
    (folder / "model.json").write_text(json.dumps(model.config.to_dict()))
    names = [*forms(folder, model), *bare_forms(folder, model.state_dict())]
    found = score(*names, "--model-config", "model.json")  # agrees with what some of them carry
    assert list(found) == names and len(set(found.values())) == 1
    assert score(*names[:5]) == {name: found[name] for name in names[:5]}  # which need no flag


@pytest.mark.slow
def test_checkpoints_behind_urls_have_the_same_scores(folder: Path, score: Score, s3: Any, web: Any) -> None:
    local = forms(folder, random_model())
    for path in [*Path(local[2]).iterdir(), Path(local[0])]:
        s3.put(str(path.relative_to(folder)), path.read_bytes())
    (web.folder / "epoch_2.pt").write_bytes(Path(local[0]).read_bytes())
    remote = ["ours/checkpoints/epoch_2.pt", "ours", str(Path(local[2]).relative_to(folder)), "sharded"]
    found = score(local[0], *map(s3.url, remote), web.url("epoch_2.pt"))
    assert len(found) == 6 and len(set(found.values())) == 1
    with pytest.raises(ValueError, match=r"epoch_9\.pt: no such file"):
        score(local[0], web.url("epoch_9.pt"))


def test_flags_say_what_a_first_generation_configuration_leaves_out(folder: Path, score: Score) -> None:
    model = random_model(positional_embedding_type="head_rotary", qk_norm=True, model_norm="gain_only_lp_layer_norm")
    plain = {key: model.config.to_dict()[key] for key in ("hidden_dim", "n_layers", "n_heads", "seq_len", "vocab_size")}
    (folder / "plain.json").write_text(json.dumps(plain))
    (folder / "old.json").write_text(json.dumps({**plain, "rotary_old": True}))
    write_weights(folder / "whole.pt", model.state_dict(), {"model_config": model.config.to_dict()})
    torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, folder / "epoch_1.pt")
    right = score("whole.pt")["whole.pt"]
    shape = ["--qk-norm", "--model-norm", "gain_only_lp_layer_norm", "--attn-name", "torch_attn"]
    for way in (
        ["--model-config", "plain.json", "--rotary-old"],
        ["--model", "plain.json", "--positional-embedding-type", "head_rotary"],
        ["--model", "old.json"],
    ):
        assert score("epoch_1.pt", *way, *shape) == {"epoch_1.pt": right}
        assert score("whole.pt", *way, *shape) == {"whole.pt": right}
    assert score("epoch_1.pt", "--model", "plain.json", *shape) != {"epoch_1.pt": right}  # rotary: other scores of the same weights
    with pytest.raises(ValueError, match="belongs to another model"):
        score("epoch_1.pt", "--model", "old.json")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--positional-embedding-type", "rotary"],
            r"--positional-embedding-type rotary: checkpoint one\.pt carries .* head_rotary; leave",
        ),
        (["--no-qk-norm"], r"--no-qk-norm: checkpoint one\.pt carries qk_norm True"),
        (
            ["--model", "other.json"],
            r"--model other\.json: says positional_embedding_type rotary, but checkpoint one\.pt carries head_rotary",
        ),
        (["--model", "other.json", "--rotary-old"], r"--positional-embedding-type head_rotary: other\.json says .* rotary"),
        (["--rotary-old", "--positional-embedding-type", "rotary"], r"--rotary-old: is head_rotary"),
        (["--model", "twice.json"], r"--model twice\.json: rotary_old is the first name of"),
        (["--attn-name", "custom_attn"], r"--attn-name custom_attn: not built"),
        (["--attn-activation", "relu"], r"--attn-activation: custom attention is not built"),
        (["--attn-seq-scalar-alpha", "0.5"], r"--attn-seq-scalar-alpha: custom attention is not built"),
        (["--moe-freq", "2"], r"--moe-freq: mixture of experts is not part"),
        (["--model", "open_lm_1bb"], r"--model open_lm_1bb: no such size\. Did you mean open_lm_1b\?"),
        (["--num-fewshot", "3"], r"--num-fewshot: only with --backend lm-eval; leave it out with native"),
        (["--no-cut"], r"--no-cut|--cut: only with --backend llm-foundry"),
        (["--out", "s3://bucket/out.json"], r"--out s3://bucket/out\.json: must be a local file"),
        (["--out", "tasks.yaml/out.json"], r"--out tasks\.yaml/out\.json: .*tasks\.yaml is a file; name another file"),
    ],
)
def test_flags_that_contradict_or_do_nothing_are_refused(folder: Path, score: Score, flags: list[str], words: str) -> None:
    model = random_model(positional_embedding_type="head_rotary", qk_norm=True)
    write_weights(folder / "one.pt", model.state_dict(), {"model_config": model.config.to_dict()})
    (folder / "other.json").write_text(json.dumps({**model.config.to_dict(), "positional_embedding_type": "rotary"}))
    (folder / "twice.json").write_text(json.dumps({**model.config.to_dict(), "positional_embedding_type": "rotary", "rotary_old": True}))
    with pytest.raises(ValueError, match=words):
        score("one.pt", *flags)
    assert not (folder / "out.json").exists()


def test_architecture_flags_are_not_for_hugging_face_models(folder: Path) -> None:
    with pytest.raises(UserError, match="--qk-norm: is for --checkpoint"):
        parse_eval(["--eval-yaml", "tasks.yaml", "--hf-model", "gpt2", "--qk-norm"])


class Attack:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("pwned"),)


def test_bad_checkpoints_are_all_told_before_the_first_is_scored(folder: Path, score: Score, capsys: pytest.CaptureFixture[str]) -> None:
    good, *_ = forms(folder, random_model())
    Path("half.pt").write_bytes(Path(good).read_bytes()[:5000])
    torch.save({"state_dict": {"a": torch.zeros(1)}, "epoch": Attack()}, "crafted.pt")
    Path("older.pt").write_bytes(pickle.dumps(Attack()))
    torch.save({"epoch": 1}, "weightless.pt")
    Path("empty").mkdir()
    bare_forms(folder, random_model().state_dict())
    bad = ["half.pt", "crafted.pt", "older.pt", "weightless.pt", "empty", "bare.pt"]
    capsys.readouterr()  # what saving says
    with pytest.raises(UserError) as error:
        score(good, *bad)
    told = error.value.problems
    assert [name for name, line in zip(bad, told, strict=True) if name not in line or "\n" in line] == []
    assert "give --model-config" in told[-1] and "holds no epoch_N.pt" in told[-2]
    assert capsys.readouterr().out == "" and not Path("out.json").exists() and not Path("pwned").exists()


def test_wrong_rows_are_all_told_before_the_first_task_is_scored(folder: Path, score: Score, capsys: pytest.CaptureFixture[str]) -> None:
    good, *_ = forms(folder, random_model())
    Path("wrong.jsonl").write_text('{"query": "a", "choices": ["b", "c"], "gold": 5}\n')
    Path("empty.jsonl").touch()
    with Path("tasks.yaml").open("a") as file:
        for name in ("wrong", "empty"):
            file.write(f"- {{label: {name}, dataset_uri: {name}.jsonl, num_fewshot: [0, 1], icl_task_type: multiple_choice}}\n")
    with pytest.raises(UserError) as error:
        score(good)
    assert len(error.value.problems) == 2 and "wrong.jsonl line 1" in error.value.problems[0]
    assert "hats" not in capsys.readouterr().err


def test_a_failure_in_the_second_leaves_the_scores_of_the_first(folder: Path, score: Score, capsys: pytest.CaptureFixture[str]) -> None:
    good, *_ = forms(folder, random_model())
    state = Path(state_folder(folder / "damaged", random_model()))
    part = max(state.glob("*.distcp"), key=lambda path: path.stat().st_size)
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 255
    part.write_bytes(content)
    with pytest.raises(ValueError, match=str(state)):
        score(good, str(state))
    assert list(json.loads(Path("out.json").read_text())) == [good]
    assert "| hats/0-shot" in capsys.readouterr().out
