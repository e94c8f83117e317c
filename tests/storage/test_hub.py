"""A hub that can't be reached is noticed in seconds and named in one line; what is cached of it works all the same."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from open_lm.evaluation.hf_tokenizer import hf_source
from open_lm.storage import StorageError, hub, read_bytes
from open_lm.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from remote.web import WebServer

NOWHERE = "http://127.0.0.1:1"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of a hub that is not there."""
    constants = pytest.importorskip("huggingface_hub.constants")
    for name, value in {"ENDPOINT": NOWHERE, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": False}.items():
        monkeypatch.setattr(constants, name, value)
    hub.unreachable.cache_clear()
    return tmp_path


def test_an_answer_is_one_whatever_it_says(web: WebServer) -> None:
    assert hub.unreachable(web.url("nothing")) is None
    assert "refused" in str(hub.unreachable(NOWHERE))


def test_a_server_that_is_silent_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        began = time.monotonic()
        assert hub.unreachable(f"http://127.0.0.1:{server.getsockname()[1]}")
        assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    "ask, flag",
    [(load_tokenizer, "--tokenizer me/words: "), (hf_source, "--hf-model me/words: "), (read_bytes, "hf://datasets/me/words/a.jsonl: ")],
)
def test_a_name_is_refused_in_one_line_with_the_remedy(cache: Path, ask: object, flag: str) -> None:
    began = time.monotonic()
    with pytest.raises((ValueError, StorageError)) as error:
        ask("hf://datasets/me/words/a.jsonl" if ask is read_bytes else "me/words")  # type: ignore[operator]
    assert time.monotonic() - began < 5
    assert str(error.value).startswith(f"{flag}{NOWHERE} can't be reached (") and "set HF_ENDPOINT to a mirror" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_cached_name_works_without_the_hub(cache: Path, shared: Path) -> None:
    model = cache / "models--me--words"
    (model / "snapshots/0123").mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs/main").write_text("0123")
    (model / "snapshots/0123/config.json").write_text("{}")
    text = (shared / "data/tokenizers/20B_tokenizer.json").read_text(encoding="utf-8")
    (model / "snapshots/0123/tokenizer.json").write_text(text, encoding="utf-8")
    assert load_tokenizer("me/words").eot_token == "<|endoftext|>"
    assert hf_source("me/words") == {"pretrained_model_name_or_path": "me/words", "local_files_only": True}


def test_only_what_is_known_to_be_absent_is(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = pytest.importorskip("huggingface_hub.errors")

    def fails(*_: object, **__: object) -> None:
        raise errors.LocalEntryNotFoundError("429 Too Many Requests")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fails)
    monkeypatch.setattr(hub, "hub_problem", lambda: None)
    with pytest.raises(ValueError, match="429 Too Many Requests, and the cache hasn't it"):
        hub.from_hub("me/words", "tokenizer_config.json", optional=True)
    monkeypatch.setattr(hub, "hub_problem", lambda: "HF_HUB_OFFLINE is set")
    assert hub.from_hub("me/words", "tokenizer_config.json", optional=True) == b""
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set, and the cache hasn't it"):
        hub.from_hub("me/words", "tokenizer.json")
