"""make_instruct.py as a whole: what comes out depends on the input and the options, and training counts what it should."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard
from chat import CHATML, make, make_tokenizer, random_chats, read_ids, stored_rows, write_lines

from open_lm.data.masks import Masks
from open_lm.params.fields import UserError
from open_lm.shards.convert import ConvertOptions, convert
from open_lm.shards.manifest import read_manifest
from open_lm.shards.provenance import files_from_bytes, from_bytes
from open_lm.tokenizer import load_tokenizer
from open_lm.tokens import stages
from open_lm.tokens.instruct import stage
from open_lm.tokens.instruct.template import ChatTemplate

Chats = list[dict[str, Any]]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def chats(tmp_path: Path) -> dict[Path, Chats]:
    """Three files of conversations, by file."""
    some = {tmp_path / f"raw/{i}.jsonl": random_chats(50, i, words=6) for i in range(3)}
    for path, records in some.items():
        write_lines(path, records)
    return some


def outputs(root: Path) -> dict[str, bytes]:
    """All files but the statistics, which hold times."""
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file() and p.name != "stats.json"}


def test_every_conversation_is_there_once_whole_and_counts_what_the_assistant_says(tmp_path: Path, chats: dict[Path, Chats]) -> None:
    tokenizer = load_tokenizer(str(make_tokenizer(tmp_path / "t")))
    end = "<|im_end|>"
    summary = make([*chats], tmp_path / "t", tmp_path / "out", seq_len=400, shard_size=4, num_consumers=2)
    rows = stored_rows(tmp_path / "out/400-v1")
    texts, said = [], []
    for row, pieces in zip(rows, pieces_of_rows(tmp_path / "out/400-v1")):
        at = 0
        for _, _, start, length in pieces:
            assert start == 0
            ids = row[at : at + length]
            texts.append(tokenizer.decode(read_ids(ids)))
            said.append(tokenizer.decode(ids[ids >= 0]))
            at += length
        assert (row[at:] == -1).all()
    expected = [chat["messages"] for some in chats.values() for chat in some]
    whole = {ChatTemplate(CHATML).render(chat)[0] + "<|endoftext|>": chat for chat in expected}
    assert sorted(texts) == sorted(whole)
    for text, spoken in zip(texts, said):
        assert spoken == "".join(m["content"] + end for m in whole[text] if m["role"] == "assistant")
    counts = summary.conversations
    assert counts["target_tokens"] == (rows[:, 1:] >= 0).sum() == counts["counted_tokens"]
    assert counts["fill_ratio"] == pytest.approx(summary.counts.tokens / rows.size, abs=1e-6) and counts["fill_ratio"] > 0.9
    assert counts["long_conversations"] == 0 and summary.counts.documents_read == 150


def pieces_of_rows(root: Path) -> list[list[tuple[int, int, int, int]]]:
    found = []
    for manifest in sorted(root.glob("*/manifest.jsonl")):
        for entry in read_manifest(str(manifest)):
            known = from_bytes((root / "provenance" / manifest.parent.name / f"{entry.shard}.npz").read_bytes())
            found += [known.of_sequence(i) for i in range(entry.num_sequences)]
    return found


@pytest.mark.slow
def test_the_chat_template_lies_beside_the_tokenizer(tmp_path: Path, chats: dict[Path, Chats], tokenizer: Path) -> None:
    make([*chats], tokenizer, tmp_path / "out")
    beside = load_tokenizer(str(tmp_path / "out/128-v1"))
    assert beside.chat_template == CHATML and beside.special["eos_token"] == "<|endoftext|>" and beside.eot_token == "<|endoftext|>"
    convert(ConvertOptions(input_dir=str(tmp_path / "out/128-v1"), output_dir=str(tmp_path / "converted"), format="npy"))
    assert load_tokenizer(str(tmp_path / "converted")).chat_template == CHATML
    make([*chats], tmp_path / "out/128-v1", tmp_path / "again")  # with the template that lies there
    assert stored_rows(tmp_path / "again/128-v1").tolist() == stored_rows(tmp_path / "out/128-v1").tolist()
    from transformers import AutoTokenizer

    messages = next(iter(chats.values()))[0]["messages"]
    text = AutoTokenizer.from_pretrained(tmp_path / "out/128-v1").apply_chat_template(messages, tokenize=False)
    assert text == ChatTemplate(CHATML).render(messages)[0]
    pairs = write_lines(tmp_path / "pairs.jsonl", [{"prompt": "a", "response": "b"}])
    make([pairs], tokenizer, tmp_path / "out", chat_template="plain", overwrite=True)
    assert not (tmp_path / "out/128-v1/tokenizer_config.json").exists()


def test_document_masks_part_the_conversations_of_a_row(tmp_path: Path, chats: dict[Path, Chats], tokenizer: Path) -> None:
    make([*chats], tokenizer, tmp_path / "out", seq_len=400)
    rows = stored_rows(tmp_path / "out/400-v1")
    ids = Masks(document_end=load_tokenizer(str(tokenizer)).eot_id).document_ids(rows)
    assert ids is not None
    for row, pieces in zip(ids, pieces_of_rows(tmp_path / "out/400-v1")):
        expected = np.repeat(np.arange(len(pieces)), [length for *_, length in pieces])[:400]
        assert row[: len(expected)].tolist() == expected.tolist()


def test_provenance_leads_to_the_line_of_a_conversation(tmp_path: Path, chats: dict[Path, Chats], tokenizer: Path) -> None:
    make([*chats], tokenizer, tmp_path / "out", seq_len=400)
    root, loaded = tmp_path / "out/400-v1", load_tokenizer(str(tokenizer))
    files = files_from_bytes((root / "provenance/files.jsonl").read_bytes())
    row, (file, at, _, length) = stored_rows(root)[0], pieces_of_rows(root)[0][0]
    line = json.loads(Path(files[file]).read_bytes()[at:].split(b"\n")[0])
    assert loaded.decode(read_ids(row[:length])) == ChatTemplate(CHATML).render(line["messages"])[0] + "<|endoftext|>"


@pytest.mark.slow
def test_the_bytes_depend_neither_on_workers_nor_on_compression(tmp_path: Path, chats: dict[Path, Chats], tokenizer: Path) -> None:
    make([*chats], tokenizer, tmp_path / "one", num_consumers=2)
    make([*chats], tokenizer, tmp_path / "two", num_consumers=2, num_workers=3)
    assert outputs(tmp_path / "one") == outputs(tmp_path / "two")
    make([*chats], tokenizer, tmp_path / "seed", num_consumers=2, seed=1)
    assert outputs(tmp_path / "one") != outputs(tmp_path / "seed")
    for path in chats:
        (tmp_path / "packed").mkdir(exist_ok=True)
        (tmp_path / f"packed/{path.name}.zst").write_bytes(zstandard.compress(path.read_bytes()))
        (tmp_path / f"packed/{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    for kind in ("zst", "gz"):
        make(sorted((tmp_path / "packed").glob(f"*.{kind}")), tokenizer, tmp_path / kind)
        found, told = stored_rows(tmp_path / kind / "128-v1"), stored_rows(tmp_path / "one/128-v1")
        assert (found[:, 1:] >= 0).sum() == pytest.approx((told[:, 1:] >= 0).sum(), rel=0.01)  # units differ, and so do rows


@pytest.mark.parametrize(("module", "name"), [(stage, "do_stretch"), (stages, "do_shard")])
def test_a_stopped_run_goes_on_and_ends_with_the_same_bytes(
    module: Any, name: str, tmp_path: Path, chats: dict[Path, Chats], tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make([*chats], tokenizer, tmp_path / "whole")
    function, left = getattr(module, name), [2]

    def failing(task: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        return function(task)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, failing)
        with pytest.raises(OSError, match="No space left"):
            make([*chats], tokenizer, tmp_path / "out")
    assert not (tmp_path / "out/128-v1/stats.json").exists()
    summary = make([*chats], tokenizer, tmp_path / "out")
    assert outputs(tmp_path / "out") == outputs(tmp_path / "whole")
    assert make([*chats], tokenizer, tmp_path / "out") == summary  # it is finished
    with pytest.raises(ValueError, match=r"holds the shards of another command \(--loss-on was assistant, is last\)"):
        make([*chats], tokenizer, tmp_path / "out", loss_on="last")


def test_bad_records_are_named_counted_and_stop_above_the_allowed_share(tmp_path: Path, tokenizer: Path) -> None:
    good = random_chats(8, 0, words=4)
    path = write_lines(tmp_path / "chats.jsonl", [*good[:3], {"text": "no"}, *good[3:], {"messages": [{"role": "user", "content": "u"}]}])
    with pytest.raises(ValueError, match=r"chats\.jsonl, line 4: has none of the known fields"):
        make([path], tokenizer, tmp_path / "out")
    with pytest.raises(ValueError, match=r"--max-bad-fraction 0\.1: 2 of 10 documents refused"):
        make([path], tokenizer, tmp_path / "out", max_bad_fraction=0.1)
    summary = make([path], tokenizer, tmp_path / "other", max_bad_fraction=0.2)
    assert (summary.counts.documents_read, summary.counts.documents_refused) == (8, 2)
    told = json.loads((tmp_path / "other/128-v1/stats.json").read_text())
    assert "line 10: has no message of the role assistant" in told["refusals"][1]


@pytest.mark.parametrize("long", ["split", "truncate", "drop"])
def test_conversations_longer_than_a_row(long: str, tmp_path: Path, tokenizer: Path) -> None:
    pairs = [{"prompt": "the quick", "response": "brown fox " * 60}, {"prompt": "a", "response": "dog;"}]
    summary = make([write_lines(tmp_path / "p.jsonl", pairs)], tokenizer, tmp_path / "out", seq_len=32, chat_template="plain", long=long)
    rows, eot = stored_rows(tmp_path / "out/32-v1"), load_tokenizer(str(tokenizer)).eot_id
    counts, of = summary.counts, summary.conversations
    assert of["long_conversations"] == 1
    assert rows.size == counts.tokens - counts.dropped_tokens + counts.padding_tokens
    if long == "split":
        assert counts.dropped_tokens == 0 and (rows[:, 1:] >= 0).sum() == of["target_tokens"] < of["counted_tokens"]
    elif long == "truncate":
        assert len(rows) == 2 and any(row[-1] == ~eot for row in rows)
    else:
        assert len(rows) == 1 and load_tokenizer(str(tokenizer)).decode(rows[0][rows[0] >= 0]) == "dog;<|endoftext|>"


def test_options_that_cannot_be_are_told_together(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        make([], tmp_path, "", prompt_key="q", template_date="today", seq_len=0, max_bad_fraction=2, separator="->\udcff")
    flags = (
        "--separator: has half a surrogate pair",
        "--input-files",
        "--response-key",
        "--max-bad-fraction 2",
        "--output-dir",
        "--template-date today",
        "--seq-len 0",
    )
    assert len(caught.value.problems) == len(flags) and all(flag in str(caught.value) for flag in flags)


def test_files_without_lines_are_refused(tmp_path: Path, tokenizer: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ValueError, match=r"--input-files .*a\.txt: holds no lines of JSON"):
        make([tmp_path / "a.txt"], tokenizer, tmp_path / "out")
    (tmp_path / "a.jsonl").write_text("")
    with pytest.raises(ValueError, match="hold no conversation"):
        make([tmp_path / "a.jsonl"], tokenizer, tmp_path / "out")
    assert not list((tmp_path / "out").glob(".*-work"))  # nothing is in the way of the corrected command


def test_a_remote_output_holds_what_a_local_one_would(
    s3: Any, tmp_path: Path, chats: dict[Path, Chats], tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENLM_CACHE", str(tmp_path / "cache"))
    make([*chats], tokenizer, tmp_path / "local")
    make([*chats], tokenizer, s3.url("chats"))
    local = outputs(tmp_path / "local")
    assert {key: s3.get(f"chats/{key}") for key in local} == local


@pytest.mark.slow
def test_the_command_makes_shards_on_which_training_counts_the_assistants_tokens_alone(
    repo: Path, tmp_path: Path, chats: dict[Path, Chats], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = make_tokenizer(tmp_path / "t")
    command = [sys.executable, str(repo / "datapreprocess/make_instruct.py"), "--input-files", *map(str, chats)]
    more = ["--tokenizer", str(tokenizer), "--output-dir", str(tmp_path / "data"), "--seq-len", "128", "--num-workers", "2"]
    done = subprocess.run([*command, *more], capture_output=True, text=True)
    assert done.returncode == 0 and "tokens that count" in done.stdout, done.stderr
    root = tmp_path / "data/128-v1"
    rows, told = stored_rows(root), json.loads((root / "stats.json").read_text())
    targets = trained_targets(tmp_path, root, len(rows), monkeypatch)
    assert len(targets) == (rows[:, 1:] >= 0).sum() == told["conversations"]["target_tokens"]
    assert np.array_equal(np.sort(targets), np.sort(rows[:, 1:][rows[:, 1:] >= 0]))
    shown = subprocess.run(
        [sys.executable, str(repo / "scripts/inspect_batch.py"), "--run", "logs/chat", "--step", "1", "--text", "--sources"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    assert "<|im_start|>assistant" in shown.stdout and "raw/0.jsonl, byte" in shown.stdout
    assert json.loads((tmp_path / "logs/chat/metrics.jsonl").read_text().splitlines()[0])["loss"] > 0


def trained_targets(folder: Path, root: Path, rows: int, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """The targets that a run over all rows, two steps with document masks, asked its loss for."""
    from open_lm.main import main
    from open_lm.train import step

    size = {"hidden_dim": 32, "n_layers": 1, "n_heads": 4, "seq_len": 128, "vocab_size": 400}
    (folder / "tiny.json").write_text(json.dumps(size))
    seen, sums = [], step.cross_entropy_sums

    def recorded(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, z_loss: float) -> Any:
        seen.append(targets[targets >= 0].numpy().copy())
        return sums(hidden, weight, targets, z_loss)

    monkeypatch.setattr(step, "cross_entropy_sums", recorded)
    monkeypatch.chdir(folder)
    torch.set_num_threads(1)
    flags = f"--model tiny.json --dataset-manifest {root}/0/manifest.jsonl --train-num-samples {rows * 128} --global-batch-size {rows}"
    flags += " --precision fp32 --workers 0 --log-every-n-steps 1 --document-mask --logs-dir logs --name chat --epochs 1 --warmup 1"
    assert main(flags.split()) == 0
    return np.concatenate(seen)
