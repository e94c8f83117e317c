"""Every flag that names something to write: what can't be written is told in one line, with the other mistakes, before data are read;
what is there and not ours is never replaced."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., int]
FILE = "file/x"  # below a file, where nothing can be
WRITERS = [
    ("datapreprocess/make_2048.py", ["--output-dir", FILE, "--temp-dir", FILE, "--seq-len", "0"], 3),
    ("datapreprocess/make_instruct.py", ["--output-dir", FILE, "--temp-dir", FILE, "--seq-len", "0"], 3),
    ("datapreprocess/convert_shards.py", ["--output-dir", FILE, "--eot-id", "-1"], 2),
    ("datapreprocess/corpus_stats.py", ["--output-json", FILE, "--output-png", "folder", "--seq-len", "0"], 3),
    ("datapreprocess/validate_data.py", ["--output-csv", FILE, "--long-line", "0"], 2),
    ("datapreprocess/download_dataset.py", ["--output-dir", FILE, "--num-files", "0"], 2),
    ("datapreprocess/train_tokenizer.py", ["--output", FILE], 1),
    ("datapreprocess/make_tasks.py", ["--output-dir", FILE], 1),
    ("datapreprocess/stdlib_corpus.py", ["--output-dir", FILE], 1),
    ("eval/eval_openlm_ckpt.py", ["--out", "file/x.json", "/proc/x.csv", "--limit", "0"], 3),
    ("eval/compare.py", ["--out", "file/x.json"], 1),
    ("eval/download_data.py", ["--output-dir", FILE, "--eval-yaml", "none.yaml"], 2),
    ("scripts/report.py", ["--output", FILE], 1),
    ("scripts/data_report.py", ["--output", FILE], 1),
    ("scripts/inspect_batch.py", ["--order-file", FILE, "--ids", "-1"], 2),
    *((f"scripts/convert_checkpoint.py {verb}", ["--out", FILE], 1) for verb in ("unshard", "reshard", "export-weights", "average")),
]


@pytest.fixture
def command(repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Command]:
    """A script of the repository, run in this process in an own folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def run(script: str, *arguments: str) -> int:
        path, *verb = script.split()
        spec = importlib.util.spec_from_file_location(f"a_command_{Path(path).stem}", repo / path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        monkeypatch.setattr(sys, "argv", [path, *verb, *arguments])
        spec.loader.exec_module(module)
        return int(module.main())

    yield run


@pytest.mark.parametrize("script, flags, told", WRITERS, ids=[script for script, _, _ in WRITERS])
def test_what_can_t_be_written_is_told_with_the_other_mistakes(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], script: str, flags: list[str], told: int
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    assert command(script, *flags) == 2
    error = capsys.readouterr().err
    named = [flag for flag in flags if flag.startswith("--")]
    assert all(f"{flag} " in error for flag in named) and len(error.splitlines()) >= told, error
    assert "Traceback" not in error and sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_tables_replace_tables_only_and_no_input(command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"m": {"arc": {"accuracy": 0.5, "questions": 4, "seconds": 1.0}}}))
    for name in ("thesis.md", "thesis.csv", "thesis.png", "thesis.json"):
        (tmp_path / name).write_text("{}]")
        assert command("eval/compare.py", "a.json", "--out", name) == 2
        assert f"--out {name}: exists, and is no table" in capsys.readouterr().err and (tmp_path / name).read_text() == "{}]"
    assert command("eval/compare.py", "a.json", "--out", "a.json") == 2
    assert "is one of the results that are compared" in capsys.readouterr().err
    for _ in range(2):
        assert command("eval/compare.py", "a.json", "--out", "t.md", "t.csv", "t.json", "t.png") == 0


def test_reports_replace_reports_only(tmp_path: Path) -> None:
    from open_lm.report import Report, read_run, write_report

    run = tmp_path / "run"
    run.mkdir()
    lines = [json.dumps({"step": n, "tokens": 10 * n, "loss": 1.0, "lr": 0.1, "tokens_per_second": 1.0}) for n in (1, 2)]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    report = Report([read_run(str(run))])
    for name in ("p.html", "p-loss.png"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(ValueError, match=f"--output .*{name}: exists, and no report wrote it"):
            write_report(report, tmp_path / "p.html")
        assert [path.name for path in tmp_path.glob("p*")] == [name]
        (tmp_path / name).unlink()
    assert write_report(report, tmp_path / "p.html") == write_report(report, tmp_path / "p.html")


def test_order_files_and_exports_replace_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np
    import torch

    from open_lm.checkpoint.convert import export_weights
    from open_lm.checkpoint.weights import write_weights
    from open_lm.data.order_file import write_order

    (tmp_path / "order.npy").write_text("mine")
    with pytest.raises(ValueError, match="order.npy: exists; remove it"):
        write_order(str(tmp_path / "order.npy"), np.zeros((1, 1, 3), np.uint32))
    model: dict[str, Any] = {"hidden_dim": 8, "n_layers": 1, "n_heads": 1, "seq_len": 8, "vocab_size": 8}
    write_weights(tmp_path / "w.pt", {"x": torch.zeros(1)}, {"model_config": model, "name": "m"})
    path = export_weights(str(tmp_path / "w.pt"), str(tmp_path))
    assert export_weights(str(tmp_path / "w.pt"), str(tmp_path)) == path
    path.write_text("mine")
    with pytest.raises(ValueError, match="exists and is something else"):
        export_weights(str(tmp_path / "w.pt"), str(tmp_path))
    assert path.read_text() == "mine"


def test_a_manifest_that_can_t_be_written_is_told_before_shards_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    from open_lm.shards import manifest_command

    folder = manifest_command.Folder("/proc/shards", ["/proc/shards/a.tar"])
    with pytest.raises(ValueError, match="PLACE /proc/shards/manifest.jsonl: can't be written"):
        manifest_command.make_manifests([folder], None, False, 1)
