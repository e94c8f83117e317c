"""What OpenLM published of its models and of two others, as columns beside ours.

Source: the tables of OpenLM's README (the 7B at 1.25T tokens, the 1B at 1.6T); two decimals, no examples before a question except
where the row says 5-shot. It left TriviaQA empty, and MMLU with 5 examples for all but OpenLM-7B and LLaMA-7B.
"""

from __future__ import annotations

from collections.abc import Iterable

ROWS = (
    "arc_challenge/0-shot", "arc_easy/0-shot", "boolq/0-shot", "copa/0-shot", "hellaswag/0-shot", "lambada_openai/0-shot", "piqa/0-shot",
    "winogrande/0-shot", "mmlu/0-shot", "jeopardy/0-shot", "winograd/0-shot",
)  # fmt: skip
_TABLE = {
    "OpenLM-1B": (0.31, 0.56, 0.65, 0.70, 0.61, 0.66, 0.74, 0.60, 0.25, 0.10, 0.79),
    "OpenLM-7B": (0.39, 0.66, 0.70, 0.78, 0.70, 0.70, 0.77, 0.67, 0.30, 0.21, 0.86),
    "LLaMA-7B": (0.41, 0.65, 0.77, 0.78, 0.75, 0.74, 0.79, 0.68, 0.30, 0.33, 0.81),
    "MPT-7B": (0.39, 0.67, 0.75, 0.81, 0.76, 0.70, 0.80, 0.68, 0.30, 0.31, 0.88),
}
_MMLU_5 = {"OpenLM-7B": 0.34, "LLaMA-7B": 0.34}

PUBLISHED: dict[str, dict[str, float]] = {
    model: dict(zip(ROWS, values, strict=True)) | ({"mmlu/5-shot": _MMLU_5[model]} if model in _MMLU_5 else {})
    for model, values in _TABLE.items()
}
"""Accuracy by model, then by task name as in eval/openlm_table.yaml."""
AVERAGES = {"OpenLM-1B": 0.54, "OpenLM-7B": 0.61, "LLaMA-7B": 0.64, "MPT-7B": 0.64}
"""The averages that stand below the tables: of the rows above, MMLU with 5 examples not among them."""


def references(models: Iterable[str]) -> dict[str, dict[str, float]]:
    """The published rows of some models, in the order of `PUBLISHED`. Raises ValueError as `reference`."""
    found = [reference(model) for model in models]
    return {name: rows for name, rows in PUBLISHED.items() if any(rows is one for one in found)}


def reference(model: str) -> dict[str, float]:
    """The published rows of a model. Raises ValueError for one of which there are none."""
    names = {name.lower(): name for name in PUBLISHED}
    if model.lower() not in names:
        raise ValueError(f"--reference {model}: nothing published here; choose among {', '.join(PUBLISHED)}")
    return PUBLISHED[names[model.lower()]]
