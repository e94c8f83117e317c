"""Weights files of OpenLM and ours: what is read, what is refused, and that nothing in them runs."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from open_lm import load_model
from open_lm.checkpoint.load import open_weights, outline
from open_lm.checkpoint.optimizer_file import read_optimizer
from open_lm.checkpoint.weights import load_weights, newest_weights, read_pt, read_weights, write_weights
from open_lm.model.config import ModelConfig
from open_lm.model.transformer import Transformer

CONFIG = {"hidden_dim": 16, "n_layers": 1, "n_heads": 2, "seq_len": 8, "vocab_size": 20}


def tiny(**changes: Any) -> Transformer:
    model = Transformer(ModelConfig(**{**CONFIG, **changes}))
    model.init_weights()
    return model


def model_json(folder: Path) -> str:
    (folder / "model.json").write_text(json.dumps(CONFIG))
    return str(folder / "model.json")


@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "_orig_mod.", "module._orig_mod.", "_fsdp_wrapped_module.", "module._fsdp_wrapped_module._checkpoint_wrapped_module."],
)
@pytest.mark.parametrize("wrapped", [True, False])
def test_every_shape_of_state_dict_loads(tmp_path: Path, prefix: str, wrapped: bool) -> None:
    source, target = tiny(), tiny()
    state = {f"{prefix}{name.replace('attention.', f'attention.{prefix}')}": value for name, value in source.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 1} if wrapped else state, tmp_path / "w.pt")
    load_weights(target, read_weights(str(tmp_path / "w.pt")).state_dict, "w.pt")
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters()))


def test_one_name_of_a_tied_or_doubled_tensor_is_enough() -> None:
    source, target = tiny(weight_tying=True, ffn_type="gelu"), tiny(weight_tying=True, ffn_type="gelu")
    state = {n: v for n, v in source.state_dict().items() if n != "tok_embeddings.weight" and "_ff_w" not in n and "inv_freq" not in n}
    load_weights(target, state, "w.pt")
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters()))


def test_two_tensors_for_one_parameter_are_told() -> None:
    target = tiny(weight_tying=True)
    with pytest.raises(ValueError, match="output.weight and tok_embeddings.weight differ, which are one in the model"):
        load_weights(target, tiny().state_dict(), "w.pt")
    whole = tiny(weight_tying=True).state_dict()
    load_weights(target, {name: value.clone() for name, value in whole.items()}, "w.pt")  # equal, though not one in the file
    assert torch.equal(target.output.weight, whole["output.weight"])


def test_a_model_has_the_widest_type_of_its_weights(tmp_path: Path) -> None:
    model = tiny()
    mixed = {name: value if name.endswith("inv_freq") else value.bfloat16() for name, value in reversed(model.state_dict().items())}
    about = {"model_config": model.config.to_dict()}
    torch.save({"state_dict": mixed, **about}, tmp_path / "w.pt")
    assert {p.dtype for p in load_model(tmp_path / "w.pt")[0].parameters()} == {torch.bfloat16}
    torch.save({"state_dict": {**mixed, "norm.weight": model.norm.weight}, **about}, tmp_path / "w.pt")
    assert {p.dtype for p in load_model(tmp_path / "w.pt")[0].parameters()} == {torch.float32}


def test_another_model_is_told_by_names_and_shapes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"belongs to another model: .*is \[20, 32\], the model's is \[20, 16\].*check --model"):
        load_weights(tiny(), tiny(hidden_dim=32).state_dict(), "w.pt")
    with pytest.raises(ValueError, match="has layers.1.attention.in_proj.weight, which the model lacks"):
        load_weights(tiny(), tiny(n_layers=2).state_dict(), "w.pt")


def test_messages_have_the_files_own_keys(tmp_path: Path) -> None:
    inner, path = "_fsdp_wrapped_module.layers.0._checkpoint_wrapped_module.attention.in_proj.weight", tmp_path / "w.pt"
    state = {f"_fsdp_wrapped_module.{name}": value for name, value in tiny().state_dict().items() if "in_proj" not in name}
    torch.save({**state, inner: torch.zeros(2, 2), "_fsdp_wrapped_module.head": torch.zeros(1)}, path)
    file = read_weights(str(path))
    words = rf"has _fsdp_wrapped_module.head, which the model lacks.*; {inner} is \[2, 2\], the model's is \[48, 16\]; check --model"
    for load in (lambda: load_weights(tiny(), file.state_dict, str(path), file.keys), lambda: load_model(path, model_json(tmp_path))):
        with pytest.raises(ValueError, match=words):
            load()
    torch.save({**state, inner: torch.zeros(48, 16), f"module.{inner}": torch.zeros(48, 16)}, path)
    with pytest.raises(ValueError, match=f"holds {inner} and module.{inner}, which are one parameter"):
        read_weights(str(path))


class Attack:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch pwned",)


def test_a_crafted_file_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"a": torch.zeros(1)}, "epoch": Attack()}, "bad.pt")
    with pytest.raises(ValueError, match="holds more than tensors and plain values"):
        read_weights("bad.pt")
    Path("bare.pt").write_bytes(pickle.dumps(Attack()))
    with pytest.raises(ValueError, match="checkpoint bare.pt"):
        read_weights("bare.pt")
    assert not Path("pwned").exists()


def _zip(members: dict[str, bytes]) -> bytes:
    with zipfile.ZipFile(made := io.BytesIO(), "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return made.getvalue()


def _saved(content: Any) -> bytes:
    torch.save(content, made := io.BytesIO())
    return made.getvalue()


OTHERS: dict[str, tuple[bytes, str]] = {
    "git_lfs_pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "a Git LFS pointer; .*git lfs pull"),
    "page": (b"\n<!DOCTYPE html><html><title>Sign in \xc3\xbc", "an HTML or XML page.*; download the file itself"),
    "answer": (b'{"error": "Repository not found"}', "JSON; give the file itself"),
    "words": (b"Entry not found", "a text that begins with 'Entry not found'; download or copy it again"),
    "gzip": (gzip.compress(b"abc"), "a gzip file; decompress it"),
    "zip": (_zip({"a.txt": b"hello"}), "a zip archive; unpack it"),
    "safetensors": ((57).to_bytes(8, "little") + b'{"a":{"dtype":"F32"}}', "a safetensors file; .*torch.save"),
    "empty": (b"", "an empty file; download or copy it again"),
    "TorchScript": (_zip({"m/constants.pkl": b"", "m/data.pkl": b""}), "is a TorchScript archive, not a checkpoint; save .* state_dict"),
    "pickle": (pickle.dumps({"a": 1}, 4), "not a whole checkpoint file, or no checkpoint"),
    "half": (_saved({"a": torch.zeros(300)})[:700], "not a whole checkpoint file, or no checkpoint; download or copy it again"),
    "module": (
        _saved(torch.nn.Linear(1, 1)),
        "holds more than tensors and plain values, .*: torch.nn.modules.linear.Linear; save its state_dict",
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("read", [read_weights, read_optimizer, open_weights, outline, lambda path: load_model(Path(path).parent.parent)])
def test_another_file_in_the_place_of_weights_is_named_and_torchs_advice_is_not(tmp_path: Path, kind: str, read: Any) -> None:
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    path = tmp_path / "run/checkpoints/epoch_1.pt"
    path.write_bytes(OTHERS[kind][0])
    with pytest.raises(ValueError, match=f"^checkpoint {re.escape(str(path))}: .*{OTHERS[kind][1]}") as caught:
        read(str(path))
    assert not re.search("weights_only|safe_globals|trust|GLOBAL|inline_container", str(caught.value))
    assert "\n" not in str(caught.value)


def test_a_git_lfs_pointer_as_it_comes_is_named(shared: Path) -> None:
    with pytest.raises(ValueError, match="is not a checkpoint but a Git LFS pointer"):
        load_model(shared / "data/cases/git_lfs_pointer.pt")


def test_numpy_scalars_as_openlm_leaves_them_are_read(tmp_path: Path) -> None:
    torch.save({"lr": np.float64(0.5), "n": np.int64(3)}, tmp_path / "o.pt")
    assert read_pt(str(tmp_path / "o.pt")) == {"lr": 0.5, "n": 3}


def test_the_optimizer_file_that_openlm_left_is_read(shared: Path) -> None:
    content = read_pt(str(shared / "data/golden/reference_run/checkpoints/optimizer_2.pt"))
    assert content["optimizer"]["param_groups"][1]["lr"] == 0


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", "half"])
def test_a_file_that_is_not_whole_is_told(tmp_path: Path, content: bytes | str) -> None:
    path = tmp_path / "w.pt"
    write_weights(path, tiny().state_dict(), {"epoch": 1})
    path.write_bytes(path.read_bytes()[:2000] if content == "half" else content)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"checkpoint {path}"):
        read_weights(str(path))


def test_our_file_carries_its_configuration_and_a_missing_one_is_told(tmp_path: Path) -> None:
    model = tiny()
    write_weights(tmp_path / "epoch_1.pt", model.state_dict(), {"model_config": model.config.to_dict()})
    loaded, tokenizer = load_model(tmp_path / "epoch_1.pt")
    assert loaded.config == model.config
    assert tokenizer is None
    assert not loaded.training
    write_weights(tmp_path / "epoch_2.pt", model.state_dict(), {})
    with pytest.raises(ValueError, match="carries no model configuration; give --model-config"):
        load_model(tmp_path / "epoch_2.pt")


def test_the_newest_epoch_of_a_folder_is_by_number(tmp_path: Path) -> None:
    for name in ("epoch_2.pt", "epoch_10.pt", "epoch_9.pt", "my_epoch_99.pt", "epoch_11.pt.tmp"):
        (tmp_path / name).touch()
    newest = newest_weights(tmp_path)
    assert newest is not None
    assert newest.name == "epoch_10.pt"
    (tmp_path / "sub").mkdir()
    with pytest.raises(ValueError, match="holds no epoch_N.pt"):
        load_model(tmp_path / "sub")
