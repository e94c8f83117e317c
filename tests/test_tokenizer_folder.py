"""A folder of Hugging Face's layout: its tokenizer_config.json says what ends a text and what it is padded with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from open_lm.tokenizer import load_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tokenizer.json with several tokens that could end a text."""
    import tokenizers

    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.add_special_tokens(["<|endoftext|>", "<|im_end|>", "<|padding|>", "<pad>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def tokens(source: str, eot: str | None = None) -> tuple[str, str | None]:
    tokenizer = load_tokenizer(source, eot)
    assert tokenizer.token_id(tokenizer.eot_token) == tokenizer.eot_id
    assert tokenizer.pad_id == tokenizer.token_id(tokenizer.pad_token or tokenizer.eot_token)
    return tokenizer.eot_token, tokenizer.pad_token


def test_a_bare_file_has_the_usual_ones(folder: Path) -> None:
    assert tokens(str(folder)) == ("<|endoftext|>", "<|padding|>")


def test_a_folder_is_what_its_config_says_a_file_what_it_holds_and_a_name_given_comes_first(folder: Path) -> None:
    about = {"eos_token": {"content": "<|im_end|>"}, "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    assert tokens(str(folder)) == tokens(f"file://{folder}") == ("<|im_end|>", "<pad>")
    assert tokens(str(folder / "tokenizer.json")) == ("<|endoftext|>", "<|padding|>")
    assert tokens(str(folder), "<|endoftext|>") == ("<|endoftext|>", "<pad>")


def test_tokens_that_the_vocabulary_lacks_count_for_nothing(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "pad_token": None}))
    assert tokens(str(folder)) == ("<|endoftext|>", "<|padding|>")


def test_a_damaged_config_is_named(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"--tokenizer .*tokenizer_config\.json: line 1: is not JSON"):
        load_tokenizer(str(folder))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_another_file_in_the_place_of_a_tokenizer_is_named(folder: Path, name: str) -> None:
    for content, words in (
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a Git LFS pointer; fetch"),
        ("<!doctype html><p>Zugriff gesperrt für Sie".encode("latin-1"), "an HTML or XML page"),
        (b"", "an empty file; download" if name == "tokenizer.json" else ""),
        (b"\x1f\x8b\x08\x00\xff", "a gzip file; decompress it first"),
    ):
        (folder / name).write_bytes(content)
        if words:
            with pytest.raises(ValueError, match=f"--tokenizer {folder}: .*is not .* but {words}"):
                load_tokenizer(str(folder))
        else:
            load_tokenizer(str(folder))


def test_a_key_given_twice_is_named_and_byte_order_marks_are_taken(folder: Path) -> None:
    about, file = folder / "tokenizer_config.json", folder / "tokenizer.json"
    whole = file.read_text()
    file.write_text("\ufeff" + whole)
    about.write_text('\ufeff{"eos_token": "<|im_end|>"}')
    assert tokens(str(folder))[0] == "<|im_end|>"
    about.write_text('{"eos_token": "<|im_end|>",\n "eos_token": "<pad>"}')
    with pytest.raises(
        ValueError, match=r"--tokenizer .*tokenizer_config\.json: line 2: the key 'eos_token' is given twice, first in line 1"
    ):
        load_tokenizer(str(folder))
    about.unlink()
    file.write_text(whole.replace('"version"', '"added_tokens": [],\n "version"', 1))
    with pytest.raises(ValueError, match=r"--tokenizer .*: not a tokenizer\.json: line \d+: the key 'added_tokens' is given twice"):
        load_tokenizer(str(folder))


def test_half_a_surrogate_pair_is_a_mistake_with_its_place(folder: Path) -> None:
    tokenizer = load_tokenizer(str(folder))
    for encode in (lambda: tokenizer.encode("abc\ud800"), lambda: tokenizer.encode_batch(["a", "abc\udcff"])):
        with pytest.raises(ValueError, match=r"text \d of \d has half a surrogate pair .* at character 3"):
            encode()
    with pytest.raises(ValueError, match=r"--eot-token: has half a surrogate pair .* at character 1"):
        load_tokenizer(str(folder), "<\udcff>")
    with pytest.raises(TypeError):
        tokenizer.encode_batch([7])  # type: ignore[list-item]
