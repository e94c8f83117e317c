"""The page of a report: summary, pictures, scores, samples, and where the files lie; plain HTML without scripts.

Every text from a file is escaped. Links and pictures are relative to the page, so the folder can be moved with the run folders.
"""

from __future__ import annotations

import html
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from urllib.parse import quote

from open_lm import storage
from open_lm.report import data_table, pictures
from open_lm.report.data import DataView
from open_lm.report.data_pictures import draw_data, panels_of
from open_lm.report.run import RunLog, Scores, Validation

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff; max-width: 56rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; line-height: 1.25; overflow-wrap: anywhere; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
img { display: block; width: 100%; max-width: 50rem; height: auto; margin: 1rem 0; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .8rem .35rem 0; border-bottom: 1px solid #ddd; text-align: right; vertical-align: top; white-space: nowrap; }
th { font-weight: 600; } th:first-child, td:first-child { text-align: left; }
pre { background: #f5f5f5; padding: .8rem; overflow-x: auto; font-size: .85rem; line-height: 1.4; }
.note { color: #555; font-size: .9rem; }
"""


@dataclass(frozen=True)
class Report:
    """What a page shows."""

    runs: Sequence[RunLog]
    scores: Scores = field(default_factory=dict)
    chance: Mapping[str, float] = field(default_factory=dict)
    """What guessing gives, by a task's label or full name."""
    samples: str = ""
    """Generated text, shown as it is."""
    title: str = ""
    """Default: the names of the runs."""


def write_report(report: Report, output: str | Path) -> list[Path]:
    """Write the page, and its pictures beside it as `<page's name>-<what>.png`; those of an earlier report are replaced.

    Returns:
        The files, the page first.

    Raises:
        ValueError: a file of such a name is there that no report wrote; nothing is written then.
    """
    page, drawing = Path(output), _pictures(report)
    drawn = {what: page.with_name(f"{page.stem}-{what.replace(' ', '-')}.png") for what in drawing}
    problems = [problem for path in (page, *drawn.values()) for problem in output_problems(str(path))]
    if problems:
        raise ValueError("\n".join(problems))
    page.parent.mkdir(parents=True, exist_ok=True)
    for what, draw in drawing.items():
        draw(drawn[what])
    with storage.atomic_write(page, "w") as file:
        file.write(render_page(report, page, drawn))
    return [page, *drawn.values()]


def output_problems(path: str | None) -> list[str]:
    """What stands in the way of writing a page or picture: it can't be written, or is there and of no report."""
    problems = storage.unwritable("--output", path)
    if path and not problems and Path(path).is_file():
        with open(path, "rb") as file:
            ours = pictures.SOFTWARE.encode() in file.read(300)
        problems += [] if ours else [f"--output {path}: exists, and no report wrote it; move it away, or give another name"]
    return problems


def _pictures(report: Report) -> dict[str, Callable[[Path], None]]:
    """How to draw each picture that the report's content allows."""
    found: dict[str, Callable[[Path], None]] = {
        "loss": lambda path: pictures.draw_loss(path, report.runs),
        "learning rate": lambda path: pictures.draw_learning_rate(path, report.runs),
        "speed": lambda path: pictures.draw_throughput(path, report.runs),
    }
    if any(report.scores.values()):
        found["scores"] = lambda path: pictures.draw_scores(path, report.scores, report.chance)
    for number, run in enumerate(report.runs):
        if panels_of(run.data):
            found[_data_picture(number)] = partial(draw_data, view=run.data)
    return found


def _data_picture(number: int) -> str:
    return "data" if number == 0 else f"data {number + 1}"


def render_page(report: Report, page: Path, drawn: Mapping[str, Path]) -> str:
    """The HTML; `drawn` are the pictures' files by what they show."""
    title = report.title or ", ".join(run.name for run in report.runs)
    parts = [f"<h1>{_text(title)}</h1>", _summary(report.runs), "<h2>Training</h2>", _notes(report.runs)]
    parts += [_image(drawn[what], f"{what} over training tokens") for what in drawn if what != "scores" and not what.startswith("data")]
    if any(v for run in report.runs for v in run.validations):
        parts += ["<h2>Validation</h2>", _validation_table(report.runs)]
    if "scores" in drawn:
        parts += ["<h2>Scores</h2>", _image(drawn["scores"], "scores"), _score_table(report.scores, report.chance)]
    for number, run in enumerate(report.runs):
        parts += _data_section(run.data, drawn.get(_data_picture(number)), len(report.runs) > 1)
    if report.samples.strip():
        parts += ["<h2>Samples</h2>", f"<pre>{_text(report.samples.strip(chr(10)))}</pre>"]
    parts += ["<h2>Files</h2>", _files(report.runs, page)]
    head = f'<meta charset="utf-8"><meta name="generator" content="{pictures.SOFTWARE}">'
    head += f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{_text(title)}</title>'
    body = "\n".join(part for part in parts if part)
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>{head}<style>{_STYLE}</style></head>\n<body>\n{body}\n</body>\n</html>\n'


def _text(value: object) -> str:
    return html.escape(str(value))


def _image(path: Path, alt: str) -> str:
    return f'<img src="{quote(path.name)}" alt="{_text(alt)}">'


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table of plain texts, in a box that scrolls sideways on a narrow screen."""
    top = "".join(f"<th>{_text(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f'<div class="wide"><table>\n<tr>{top}</tr>\n{body}</table></div>'


def _number(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else "–"


def short_count(value: float) -> str:
    """A count with three digits and a unit: 1.23M."""
    unit, name = next(((u, n) for u, n in ((1e9, "B"), (1e6, "M"), (1e3, "K")) if value >= u), (1.0, ""))
    return f"{value / unit:.3g}{name}" if math.isfinite(value) else "–"


def _model(run: RunLog) -> str:
    """The size's name, or the configuration file's without its folder."""
    return run.params.get("model", "–").rpartition("/")[2]


def _summary(runs: Sequence[RunLog]) -> str:
    """One column a run, so that a phone shows a single run without scrolling."""
    rows: list[tuple[str, Callable[[RunLog], str]]] = [
        ("model", _model),
        ("parameters", lambda run: "–" if run.parameters is None else f"{run.parameters:,}"),
        ("steps", lambda run: f"{run.steps[-1].step:,}"),
        ("training tokens", lambda run: short_count(run.steps[-1].tokens)),
        ("last training loss", lambda run: _number(run.steps[-1].loss, ".3f")),
        ("validation loss", lambda run: ", ".join(_number(v.loss, ".3f") for v in run.last_validations()) or "–"),
        ("tokens per second (median)", lambda run: _number(run.median_tokens_per_second(), ",.0f")),
    ]
    return _table(["", *(run.name for run in runs)], [[name, *(value(run) for run in runs)] for name, value in rows])


def _notes(runs: Sequence[RunLog]) -> str:
    notes = []
    for run in runs:
        if run.resumed_at:
            places = ", ".join(short_count(tokens) for tokens in run.resumed_at)
            notes.append(f"{run.name} was stopped and resumed, after {places} tokens (dashed lines).")
        if run.bad_lines:
            notes.append(f"{run.name}: lines of its logs that are not readable and left out: {run.bad_lines}.")
    return "".join(f'<p class="note">{_text(note)}</p>' for note in notes)


def _validation_table(runs: Sequence[RunLog]) -> str:
    columns: list[tuple[str, Callable[[Validation], str]]] = [
        ("training tokens", lambda v: short_count(v.tokens)),
        ("loss", lambda v: _number(v.loss, ".4f")),
        ("perplexity", lambda v: _number(v.perplexity, ".2f")),
        ("token accuracy", lambda v: _number(100 * v.token_accuracy, ".1f") + (" %" if math.isfinite(v.token_accuracy) else "")),
        ("bits per byte", lambda v: _number(v.bits_per_byte, ".4f")),
    ]
    rows = [[run.name, pictures.tail(v.data), *(value(v) for _, value in columns)] for run in runs for v in run.validations]
    return _table(["run", "data", *(name for name, _ in columns)], rows)


def _score_table(scores: Scores, chance: Mapping[str, float]) -> str:
    rows = []
    for checkpoint, by_task in scores.items():
        for task, score in by_task.items():
            guess = pictures.chance_of(task, chance)
            rows.append([
                task,
                f"{100 * score.accuracy:.1f} %",
                f"± {100 * pictures.half_interval(score.accuracy, score.questions):.1f}" if score.questions else "–",
                "–" if guess is None else f"{100 * guess:.0f} %",
                f"{score.questions:,}" if score.questions else "–",
                _number(score.seconds, ".1f"),
                pictures.tail(checkpoint),
            ])  # fmt: skip
    return _table(["task", "right", "95 %", "chance", "questions", "seconds", "checkpoint"], rows)


def _data_section(view: DataView, picture: Path | None, several_runs: bool) -> list[str]:
    """What one run read."""
    parts = [f"<h2>{_text(f'Data of {view.name}' if several_runs else 'Data')}</h2>"]
    parts.append("<ul>" + "".join(f"<li>{_text(line)}</li>\n" for line in data_table.summary(view)) + "</ul>")
    for plan in view.plans:
        parts.append(f'<p class="note">{_text(data_table.plan_title(plan))}</p>')
        if plan.sources:
            parts.append(_table(data_table.PLAN_HEAD, data_table.plan_rows(view, plan)))
    if picture:
        parts.append(_image(picture, "what was read over training tokens"))
    if view.steps:
        head, rows = data_table.time_table(view)
        parts.append(_table(*data_table.as_columns(head, rows) if len(head) > len(rows) + 1 else (head, rows)))
    return parts


def _files(runs: Sequence[RunLog], page: Path) -> str:
    """Links to what lies in the run folders, relative to the page."""
    items = []
    for run in runs:
        for name in ("metrics.jsonl", "params.txt", "config.yaml", "plans.json", "out.log", "checkpoints", "tensorboard"):
            target = run.folder / name
            if target.exists():
                link = os.path.relpath(target.resolve(), page.resolve().parent)
                items.append(f'<li><a href="{quote(Path(link).as_posix())}">{_text(Path(link).as_posix())}</a></li>')
    return f"<ul>\n{chr(10).join(items)}\n</ul>"
