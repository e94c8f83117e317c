"""Checkpoints into other forms: nothing changes but the form, and what is written is read back everywhere."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from open_lm import load_model
from open_lm.checkpoint.average import average_weights
from open_lm.checkpoint.convert import average, export_weights, reshard, unshard
from open_lm.checkpoint.epoch_pair import load_pair
from open_lm.checkpoint.inspect import describe_checkpoint
from open_lm.checkpoint.optimizer_file import moments_by_name
from open_lm.checkpoint.part_reader import load_tensors
from open_lm.checkpoint.run_state import RunState, read_run_state, state_tensors
from open_lm.checkpoint.state_writer import save_run_state
from open_lm.checkpoint.unshard import mapped_tensors, read_tensors
from open_lm.checkpoint.weights import openlm_order, read_weights, write_weights
from open_lm.model.config import ModelConfig
from open_lm.model.transformer import Transformer
from open_lm.params import OptimizerParams
from open_lm.train.optimizer import make_optimizer

CONFIG = {"hidden_dim": 16, "n_layers": 2, "n_heads": 2, "seq_len": 8, "vocab_size": 20}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"weight_tying": True, "ffn_type": "gelu"},
    {"post_embed_norm": True, "qk_norm": True, "ffn_type": "gemma_geglu"},
]


def made(**changes: Any) -> tuple[Transformer, torch.optim.AdamW]:
    model = Transformer(ModelConfig(**{**CONFIG, **changes}))
    model.init_weights()
    return model, make_optimizer(model, OptimizerParams())


def saved(folder: Path, **changes: Any) -> tuple[Path, dict[str, torch.Tensor]]:
    """A run state in a run folder, with moments of random values."""
    model, optimizer = made(**changes)
    tensors = state_tensors(model, optimizer)
    for name, value in tensors.items():
        value.fill_(30.0) if name.endswith(".step") else value.uniform_()
    params = {"lr": 0.1, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "wd": 0.2, "name": "run"}
    state = RunState(30, 240, 1920, 8, {"seed": 0, "seq_len": 8}, model.config.to_dict(), params, epoch=3)
    return Path(save_run_state(str(folder / "run/checkpoints"), tensors, state)), tensors


@pytest.mark.parametrize("changes", VARIANTS)
def test_unshard_and_reshard_give_back_the_very_same_state(tmp_path: Path, changes: dict[str, Any]) -> None:
    step, tensors = saved(tmp_path, **changes)
    for names in (False, True):
        folder = tmp_path / str(names)
        written = unshard(str(step), str(folder / "epoch_3.pt"), optimizer=True, names=names)
        assert [p.name for p in written] == ["optimizer_3.pt", "epoch_3.pt"]
        again = reshard(str(folder / "epoch_3.pt"), str(folder / "checkpoints"))
        assert again.name == "step_30"
        back = read_tensors(str(again), "")
        assert back.keys() == tensors.keys()
        assert all(torch.equal(back[name], value) for name, value in tensors.items())
        assert read_run_state(again) == read_run_state(step)
        assert not [p.name for p in folder.rglob("*.tmp")]


@pytest.mark.parametrize("changes", VARIANTS)
def test_an_unsharded_state_has_every_key_of_openlms_files(tmp_path: Path, changes: dict[str, Any]) -> None:
    step, _ = saved(tmp_path, **changes)
    unshard(str(step), str(tmp_path / "epoch_3.pt"))
    model, _ = made(**changes)
    state_dict = torch.load(tmp_path / "epoch_3.pt", weights_only=True)["state_dict"]
    assert list(state_dict) == openlm_order(model.state_dict())
    model.load_state_dict(state_dict)
    frequencies = [value for name, value in state_dict.items() if name.endswith("inv_freq")]
    assert frequencies and all(torch.equal(value, made()[0].layers[0].attention.pos_embed.inv_freq) for value in frequencies)


def test_the_order_of_names_is_that_of_openlms_files(shared: Path) -> None:
    for file in (shared / "data/golden").glob("models/*/epoch_1.pt"):
        names = [n for n in read_weights(str(file)).state_dict if "inv_freq" not in n]
        assert openlm_order(sorted(names, key=names.index)) == names
    order = openlm_order(n for n, _ in made(post_embed_norm=True)[0].named_parameters())
    assert order[:3] == ["post_embed_norm.weight", "post_embed_norm.bias", "tok_embeddings.weight"]


def test_the_run_that_openlm_left_becomes_a_run_state(tmp_path: Path, shared: Path) -> None:
    left = shared / "data/golden/reference_run"
    step = reshard(str(left), str(tmp_path), model=str(left / "model_config.json"))
    state = read_run_state(step)
    assert (state.step, state.sequences, state.tokens, state.epoch, state.plan) == (24, 192, 192 * 96, 2, {})
    config = ModelConfig(48, 3, 4, seq_len=96, vocab_size=384)
    (one, first), (two, second) = ((m := Transformer(config), make_optimizer(m, OptimizerParams())) for _ in range(2))
    load_tensors(step, state_tensors(one, first))
    load_pair(left / "checkpoints/epoch_2.pt", two, second)
    a, b = state_tensors(one, first), state_tensors(two, second)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_the_newest_state_of_a_run_folder_is_unsharded_and_a_wrong_name_is_told_first(tmp_path: Path) -> None:
    _, tensors = saved(tmp_path)
    with pytest.raises(ValueError, match=r"--out .*u\.pt: with --optimizer, give a name such as epoch_3\.pt"):
        unshard(str(tmp_path / "none"), str(tmp_path / "u.pt"), optimizer=True)
    unshard(str(tmp_path / "run"), str(tmp_path / "u.pt"))
    assert torch.equal(read_weights(str(tmp_path / "u.pt")).state_dict["norm.weight"], tensors["model.norm.weight"])


def test_an_exported_file_says_all_about_itself_and_is_named_by_its_content(tmp_path: Path) -> None:
    step, tensors = saved(tmp_path)
    (tmp_path / "run/tokenizer.json").write_text(TOKENIZER)
    for dtype, kind in ((None, torch.float32), ("bfloat16", torch.bfloat16)):
        path = export_weights(str(step), str(tmp_path / "out"), dtype=dtype)
        assert path.name == f"run-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.pt"
        moved = tmp_path / f"elsewhere-{dtype}" / path.name
        moved.parent.mkdir()
        moved.write_bytes(path.read_bytes())
        model, tokenizer = load_model(moved)
        assert model.config == ModelConfig(**CONFIG)
        assert tokenizer is not None and tokenizer.eot_token == "<|endoftext|>"
        assert torch.equal(model.norm.weight, tensors["model.norm.weight"].to(kind))
        assert torch.load(path, weights_only=True)["params"]["lr"] == 0.1
    assert export_weights(str(step), str(tmp_path / "out")) == export_weights(str(step), str(tmp_path / "out"))
    assert len(list((tmp_path / "out").iterdir())) == 2


TOKENIZER = """{"version": "1.0", "added_tokens": [{"id": 1, "content": "<|endoftext|>", "special": true, "single_word": false,
"lstrip": false, "rstrip": false, "normalized": false}], "model": {"type": "WordLevel", "vocab": {"a": 0, "<|endoftext|>": 1},
"unk_token": "a"}}"""


def test_a_name_from_a_file_stays_in_the_folder(tmp_path: Path) -> None:
    model, _ = made()
    write_weights(tmp_path / "w.pt", model.state_dict(), {"name": "../../evil", "model_config": CONFIG})
    assert export_weights(str(tmp_path / "w.pt"), str(tmp_path / "a/b")).parent == tmp_path / "a/b"


def test_weights_without_configuration_are_exported_with_model_only(tmp_path: Path, shared: Path) -> None:
    left = shared / "data/golden/models/gelu_tied"
    with pytest.raises(ValueError, match="carries no model configuration"):
        export_weights(str(left / "epoch_1.pt"), str(tmp_path))
    path = export_weights(str(left / "epoch_1.pt"), str(tmp_path), model=str(left / "model_config.json"))
    assert load_model(path)[0].config.weight_tying


@pytest.mark.parametrize("coefficients", [(), (0.25, 0.5, 1.0)])
def test_an_average_is_the_weighted_sum_of_every_form(tmp_path: Path, coefficients: tuple[float, ...]) -> None:
    states = [saved(tmp_path / str(n)) for n in range(3)]
    unshard(str(states[1][0]), str(tmp_path / "epoch_1.pt"))
    files = [str(states[0][0]), str(tmp_path / "epoch_1.pt"), str(tmp_path / "2/run")]
    mean = read_weights(str(average(files, coefficients, str(tmp_path / "mean.pt"))))
    factors = coefficients or (1 / 3,) * 3
    for name, value in mean.state_dict.items():
        if "inv_freq" not in name:
            expected = sum(f * tensors[f"model.{name}"].double() for f, (_, tensors) in zip(factors, states))
            assert torch.equal(value, expected.float())
    assert mean.about["average"] == [[name, factor] for name, factor in zip(files, factors)]
    assert load_model(tmp_path / "mean.pt")[0].config == ModelConfig(**CONFIG)


def test_averages_of_other_models_and_numbers_are_told(tmp_path: Path) -> None:
    a, b = str(saved(tmp_path / "a")[0]), str(saved(tmp_path / "b", hidden_dim=32)[0])
    with pytest.raises(ValueError, match="^checkpoint .* is of another model than"):
        average_weights([a, b])
    with pytest.raises(ValueError, match="^--coefficients: 1 given for 2 checkpoints"):
        average_weights([a, a], [1.0])


def test_load_model_takes_every_form(tmp_path: Path, web: Any) -> None:
    step, tensors = saved(tmp_path)
    forms = [str(step), str(tmp_path / "run"), str(tmp_path / "run/checkpoints")]
    unshard(str(step), str(web.folder / "epoch_3.pt"))
    for form in (*forms, web.url("epoch_3.pt")):
        assert torch.equal(load_model(form)[0].norm.weight, tensors["model.norm.weight"])
    with pytest.raises(ValueError, match="no such file"):
        load_model(web.url("epoch_4.pt"))


@pytest.mark.slow
def test_load_model_takes_folders_in_an_object_store(tmp_path: Path, s3: Any) -> None:
    step, tensors = saved(tmp_path)
    (tmp_path / "run/tokenizer.json").write_text(TOKENIZER)
    for path in [*step.iterdir(), tmp_path / "run/tokenizer.json"]:
        s3.put(str(path.relative_to(tmp_path)), path.read_bytes())
    for key in ("run", "run/checkpoints/step_30"):
        model, tokenizer = load_model(s3.url(key))
        assert torch.equal(model.norm.weight, tensors["model.norm.weight"])
        assert tokenizer is not None
    unshard(str(step), str(tmp_path / "epoch_3.pt"))
    s3.put("run/checkpoints/epoch_3.pt", (tmp_path / "epoch_3.pt").read_bytes())
    assert torch.equal(load_model(s3.url("run/checkpoints/epoch_3.pt"))[0].norm.weight, tensors["model.norm.weight"])
    assert torch.equal(load_model(s3.url("run"))[0].norm.weight, tensors["model.norm.weight"])
    with pytest.raises(ValueError, match=r"no epoch_N.pt and no step_<n>"):
        load_model(s3.url("elsewhere"))


def test_inspect_tells_what_each_form_is(tmp_path: Path, shared: Path) -> None:
    step, _ = saved(tmp_path)
    state = "\n".join(describe_checkpoint(str(tmp_path / "run")))
    assert "a run state, whole" in state and "step 30, epoch 3, 240 sequences, 1,920 tokens" in state
    count = sum(p.numel() for p in made()[0].parameters())
    assert "hidden_dim 16" in state and f"{count:,} parameters, float32" in state and "seed 0, rows of 8 tokens" in state
    unshard(str(step), str(tmp_path / "epoch_3.pt"), optimizer=True)
    assert f"{count:,} parameters, float32" in "\n".join(describe_checkpoint(str(tmp_path / "epoch_3.pt")))
    assert "moments of 20 parameters, by numbers" in "\n".join(describe_checkpoint(str(tmp_path / "optimizer_3.pt")))
    left = "\n".join(describe_checkpoint(str(shared / "data/golden/reference_run")))
    assert "epoch 2, step 24" in left and "175,776 parameters" in left and "vocabulary 384, width 48, 3 layers" in left
    assert "is_final_checkpoint: True" in "\n".join(describe_checkpoint(str(shared / "data/golden/reference_run/checkpoints/stats_2.pt")))
    next(step.glob("*.distcp")).write_bytes(b"")
    with pytest.raises(ValueError, match="is an empty file"):
        describe_checkpoint(str(step))


def test_mapped_tensors_keep_their_values_and_leave_no_file(tmp_path: Path) -> None:
    shapes = {"a": (torch.Size([3, 5]), torch.float32), "b": (torch.Size([]), torch.int64), "c": (torch.Size([7]), torch.bfloat16)}
    tensors = mapped_tensors(shapes, tmp_path)
    assert not list(tmp_path.iterdir())
    for number, value in enumerate(tensors.values()):
        value.fill_(number + 1)
    assert {name: (value.shape, value.dtype) for name, value in tensors.items()} == shapes
    assert [float(value.sum()) for value in tensors.values()] == [15.0, 2.0, 21.0]


def test_optimizers_that_dont_tell_which_parameter_is_which_are_refused() -> None:
    moments = {key: torch.zeros(()) for key in ("step", "exp_avg", "exp_avg_sq")}
    for optimizer, message in (
        ({"state": {0: moments, 1: moments}, "param_groups": [{"params": [0]}, {"params": [1]}]}, "first group of parameters is not empty"),
        ({"state": {0: moments}, "param_groups": [{"params": []}, {"params": [0]}]}, "holds 1 parameters, the weights 2"),
        ({"state": {0: moments}, "param_groups": [{"params": []}, {"params": [0, 1]}]}, "is not an AdamW optimizer's"),
        ({"state": {0: {}, 1: {}}, "param_groups": [{"params": [0, 1]}]}, "is not an AdamW optimizer's"),
        ({"state": {0: 1}, "param_groups": []}, "is not an AdamW|not enough values"),
    ):
        with pytest.raises(ValueError, match=message):
            moments_by_name(optimizer, ["a", "b"], "o.pt")


class Attack:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch pwned",)


@pytest.mark.parametrize("name", ["epoch_3.pt", "optimizer_3.pt"])
def test_crafted_files_run_nothing_on_any_way_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    from open_lm.checkpoint.find import newest_state, read_state

    monkeypatch.chdir(tmp_path)
    step, _ = saved(tmp_path)
    unshard(str(step), "epoch_3.pt", optimizer=True)
    content = torch.load(name, weights_only=True)
    torch.save({**content, "extra": Attack()}, name)
    for attempt in (
        lambda: read_state("epoch_3.pt"),
        lambda: newest_state(tmp_path),
        lambda: reshard("epoch_3.pt", "out"),
        lambda: describe_checkpoint(name),
        lambda: load_model(name),
        lambda: average_weights([name]),
    ):
        with pytest.raises(ValueError):
            attempt()
    assert not Path("pwned").exists()


def test_a_state_that_points_elsewhere_or_lies_about_its_shapes_is_told(tmp_path: Path) -> None:
    step, _ = saved(tmp_path)
    other = save_run_state(str(tmp_path / "other"), {"model.norm.weight": torch.zeros(3)}, replace(read_run_state(step), step=31))
    with pytest.raises(ValueError, match="lacks"):
        unshard(str(other), str(tmp_path / "epoch_1.pt"))
    assert not (tmp_path / "epoch_1.pt").exists()


def test_the_command_does_what_its_help_shows(
    tmp_path: Path, repo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(tmp_path / "logs")
    monkeypatch.chdir(tmp_path)

    def convert(words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["convert_checkpoint.py", *words.split()])
        monkeypatch.setattr(sys, "path", [str(repo / "scripts"), *sys.path[1:]])
        spec = importlib.util.spec_from_file_location("convert_checkpoint", repo / "scripts/convert_checkpoint.py")
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "convert_checkpoint", module)
        spec.loader.exec_module(module)
        return module.main()

    state = "logs/run/checkpoints/step_30"
    for words, expected in (
        (f"unshard --checkpoint {state} --out epoch_3.pt --optimizer", "optimizer_3.pt\nepoch_3.pt\n"),
        ("reshard --checkpoint epoch_3.pt --out b/checkpoints", "b/checkpoints/step_30\n"),
        ("average --checkpoints epoch_3.pt b --coefficients 0.25 0.75 --out mean.pt", "mean.pt\n"),
        ("inspect --checkpoint mean.pt", "mean.pt: weights; start from them with --pretrained mean.pt\n"),
    ):
        assert convert(words) == 0
        assert expected in capsys.readouterr().out
    for words, message in (
        ("unshard --checkpoint x", "--out: is needed"),
        ("inspct", "no such command; choose from inspect, unshard, reshard, export-weights, average. Did you mean inspect?"),
        ("average --checkpoints epoch_3.pt --out mean.pt", "--out mean.pt: exists"),
        ("inspect --checkpoint nowhere.pt", "nowhere.pt: no such file"),
    ):
        assert convert(words) == 2
        assert message in capsys.readouterr().err
