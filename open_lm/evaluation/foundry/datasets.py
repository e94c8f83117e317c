"""LLM Foundry's four data sets, with requests kept as long as they are and padded in the batch only.

LLM Foundry makes the prompts, tokenises, trims and collates; what differs is the padding. It pads every request to `max_seq_len`
(at 2048 some 30 to 190 times too many positions); here a batch is as wide as its longest request. Continuations stand at the left
and the model is causal, contexts to generate from stand at the right and their padding is masked: scores don't change.

Imported in LLM Foundry's environment only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from llmfoundry.eval.datasets import (
    InContextLearningDataset,
    InContextLearningGenerationTaskWithAnswersDataset,
    InContextLearningLMTaskDataset,
    InContextLearningMultipleChoiceTaskDataset,
    InContextLearningSchemaTaskDataset,
)
from llmfoundry.registry import icl_datasets
from torch import Tensor

PREFIX = "open_lm_"
"""Before LLM Foundry's name of a task type; under the new name its registry finds ours."""


class ShortRequests(InContextLearningDataset):
    """Mixed into a data set: all of its questions made ready at once, in order, each request [its length] int32.

    Args:
        limit: of questions; examples are drawn from all rows nevertheless.
        cut: False pads to `max_seq_len`, as LLM Foundry does.
    """

    def __init__(self, *args: Any, limit: int | None = None, cut: bool = True, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.cut = cut
        self.trimmed = 0
        """Questions that have lost tokens at their left end."""
        count = len(self.dataset) if limit is None else min(limit, len(self.dataset))
        self.rows = [self._short(self._prep_row(index)) for index in range(count)]

    def _prep_row(self, index: int) -> dict[str, Any]:
        row = self.dataset[index]
        return {**row, **self._prep_example(row, index, self.num_fewshot, self.prompt_string, self.fewshot_rng)}

    def tokenize_example(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """LLM Foundry's. A request that fills its room was cut if it fills a larger one, too."""
        row: dict[str, Any] = super().tokenize_example(*args, **kwargs)
        if self._fills(row):
            self.padding_size += 1
            self.trimmed += self._fills(super().tokenize_example(*args, **kwargs))
            self.padding_size -= 1
        return row

    def _fills(self, row: dict[str, Any]) -> bool:
        spans: Any = row.get("continuation_indices")
        if spans is None:
            return int(row[self.context_key][0]) != self.pad_tok_id
        spans = spans if isinstance(row[self.context_key], list) else [spans]
        return any(len(span) and int(span[-1]) + 1 >= self.padding_size for span in spans)

    def _short(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row without padding."""
        requests, several = row[self.context_key], isinstance(row[self.context_key], list)
        spans: Any = row.get("continuation_indices")
        if spans is None:
            return {**row, self.context_key: self._strip(requests, 1)}
        if not several:
            requests, spans = [requests], [spans]
        if not all(len(span) for span in spans):
            raise ValueError("an empty continuation can't be scored, LLM Foundry fails at it, too; mend the data")
        short = [self._strip(ids, int(span[-1]) + 1) for ids, span in zip(requests, spans, strict=True)]
        numbers = [span.tolist() for span in spans]  # LLM Foundry makes tensors of them in each batch
        first: Any = slice(None) if several else 0
        return {**row, self.context_key: short[first], "continuation_indices": numbers[first]}

    def _strip(self, ids: Tensor, end: int) -> Tensor:
        """Without the padding of its side, but with the ids before `end`."""
        kept = (ids != self.pad_tok_id).nonzero().flatten()
        if self.padding_side == "left":
            first = int(kept[0]) if len(kept) else len(ids) - 1
            return ids[first:].int()
        last = int(kept[-1]) + 1 if len(kept) else 1
        return ids[: max(last, end)].int()

    @property
    def longest(self) -> int:
        """Tokens of the longest request, those of an answer yet to be generated included."""
        lengths = (len(ids) for row in self.rows for ids in self._requests(row))
        return max(lengths) + self.base_batch.get("generation_kwargs", {}).get("max_new_tokens", 0)

    def _requests(self, row: dict[str, Any]) -> Sequence[Tensor]:
        requests: Any = row[self.context_key]
        return requests if isinstance(requests, list) else [requests]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.rows[index]

    def collate_fn(self, data: list[dict[str, Any]]) -> dict[str, Any]:
        """LLM Foundry's batch, as wide as its longest request."""
        width = max(len(ids) for row in data for ids in self._requests(row)) if self.cut else self.padding_size
        padded = []
        for row in data:
            requests = [self._pad(ids.tolist(), width) for ids in self._requests(row)]
            padded.append({**row, self.context_key: requests if isinstance(row[self.context_key], list) else requests[0]})
        batch: dict[str, Any] = super().collate_fn(padded)
        return batch

    def _pad(self, ids: list[int], width: int) -> list[int]:
        padding = [self.pad_tok_id] * (width - len(ids))
        return [*padding, *ids] if self.padding_side == "left" else [*ids, *padding]


class Grouped(ShortRequests):
    """Questions of several requests each. LLM Foundry counts with the choices of the first question; others may have more or fewer."""

    def get_num_samples_in_batch(self, batch: dict[str, Any]) -> int:
        """Questions of a batch."""
        return len(batch["gold_indices"])

    def split_batch(self, batch: dict[str, Any], microbatch_size: int | float) -> list[dict[str, Any]]:
        """Batches of at most so many questions."""
        count, size = len(batch["gold_indices"]), int(microbatch_size)
        return [batch] if count <= size else [self._part(batch, start, start + size) for start in range(0, count, size)]

    def _part(self, batch: dict[str, Any], start: int, stop: int) -> dict[str, Any]:
        groups = batch["choice_groupings"][start:stop]
        first, last = groups[0][0], groups[-1][1]
        part = {key: value[first:last] for key, value in batch.items() if isinstance(value, torch.Tensor)}
        part |= {"continuation_indices": batch["continuation_indices"][first:last], "gold_indices": batch["gold_indices"][start:stop]}
        return {**batch, **part, "choice_groupings": [(a - first, b - first) for a, b in groups]}


class MultipleChoice(Grouped, InContextLearningMultipleChoiceTaskDataset):
    """multiple_choice"""


class Schema(Grouped, InContextLearningSchemaTaskDataset):
    """schema"""


class LanguageModeling(ShortRequests, InContextLearningLMTaskDataset):
    """language_modeling"""


class Generation(ShortRequests, InContextLearningGenerationTaskWithAnswersDataset):
    """generation_task_with_answers"""


CLASSES = {
    "multiple_choice": MultipleChoice,
    "schema": Schema,
    "language_modeling": LanguageModeling,
    "generation_task_with_answers": Generation,
}
for _name, _class in CLASSES.items():
    icl_datasets.register(PREFIX + _name, func=_class)
