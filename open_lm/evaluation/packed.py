"""Data sets of tasks kept for a whole run: the ids of all requests in one array, 4 bytes each, where lists of integers take 36.

ids [all] int32, request after request; requests [r, 2] int64: ids of a request, and where its continuation starts; questions [q, 2] int64:
requests of a question, and its gold.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from open_lm.evaluation.benchmark import DataSet
from open_lm.evaluation.icl import Question, Request


@dataclass(frozen=True, eq=False)
class PackedDataSet:
    """A `DataSet` in little memory."""

    name: str
    ids: np.ndarray
    requests: np.ndarray
    questions: np.ndarray
    aliases: tuple[tuple[str, ...], ...]
    max_new_tokens: int

    @classmethod
    def of(cls, data: DataSet) -> PackedDataSet:
        """Packed."""
        requests = [request for question in data.questions for request in question.requests]
        shapes = [(len(request.input_ids), request.start) for request in requests]
        ids = np.empty(sum(length for length, _ in shapes), dtype=np.int32)
        place = 0
        for request in requests:
            ids[place : place + len(request.input_ids)] = request.input_ids
            place += len(request.input_ids)
        questions = [(len(question.requests), question.gold) for question in data.questions]
        aliases = tuple(question.aliases for question in data.questions)
        return cls(data.name, ids, _pairs(shapes), _pairs(questions), aliases, data.max_new_tokens)

    def unpack(self) -> DataSet:
        """As it was."""
        ends = np.cumsum(self.requests[:, 0]).tolist()
        requests = iter(
            Request(self.ids[end - length : end].tolist(), start) for end, (length, start) in zip(ends, self.requests.tolist(), strict=True)
        )
        questions = [
            Question(tuple(next(requests) for _ in range(count)), gold, aliases)
            for (count, gold), aliases in zip(self.questions.tolist(), self.aliases, strict=True)
        ]
        return DataSet(self.name, questions, self.max_new_tokens)

    def digest(self) -> str:
        """SHA-256 of all that is scored."""
        found = hashlib.sha256(repr((self.name, self.aliases, self.max_new_tokens)).encode())
        for array in (self.ids, self.requests, self.questions):
            found.update(array.tobytes())
        return found.hexdigest()


def _pairs(values: list[tuple[int, int]]) -> np.ndarray:
    return np.array(values, dtype=np.int64).reshape(-1, 2)
