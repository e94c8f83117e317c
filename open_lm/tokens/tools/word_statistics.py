"""Which word follows which in some documents, asked about one document with that document left out.

It stands for what a language model learns in its first minutes: `tasks_from_text` asks the questions that it can answer.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise

_PIECE = re.compile(r"\n *|\w+|[^\w\s]")
# Of a piece's probability: from the piece before it, from its own frequency, the same for all pieces.
_PAIR, _SINGLE, _UNSEEN = 0.6, 0.35, 0.05


def pieces(line: str) -> list[str]:
    """A line as words, signs, and in front its line break with its indentation."""
    return _PIECE.findall(f"\n{line}")


class WordStatistics:
    """Counts over documents, each a list of lines."""

    def __init__(self, documents: Sequence[Sequence[str]]):
        self._singles = [Counter[str]() for _ in documents]
        self._pairs = [Counter[tuple[str, str]]() for _ in documents]
        self._followers: dict[tuple[str, ...], dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
        for number, lines in enumerate(documents):
            found = [piece for line in lines if line for piece in pieces(line)]
            self._singles[number].update(found)
            self._pairs[number].update(pairwise(found))
            for line in lines:
                self._count_words(number, line.split())
        self._all_singles, self._all_pairs = Counter[str](), Counter[tuple[str, str]]()
        for singles, pairs in zip(self._singles, self._pairs):
            self._all_singles.update(singles)
            self._all_pairs.update(pairs)
        self._total = self._all_singles.total()
        self._totals = [singles.total() for singles in self._singles]

    def _count_words(self, document: int, words: Sequence[str]) -> None:
        for i in range(1, len(words)):
            self._followers[words[i - 1],][words[i]].add(document)
            if i > 1:
                self._followers[words[i - 2], words[i - 1]][words[i]].add(document)

    def log_probability(self, before: str, line: str, document: int) -> float:
        """Mean natural logarithm of the probability of a line's pieces behind the line `before`, by the other documents."""
        found = [pieces(before)[-1], *pieces(line)]
        singles, pairs, total = self._singles[document], self._pairs[document], self._total - self._totals[document]
        logarithms = 0.0
        for first, second in pairwise(found):
            occurrences = self._all_singles[first] - singles[first]
            follows = (self._all_pairs[first, second] - pairs[first, second]) / occurrences if occurrences else 0.0
            frequency = (self._all_singles[second] - singles[second]) / max(1, total)
            logarithms += math.log(_PAIR * follows + _SINGLE * frequency + _UNSEEN / max(1, len(self._all_singles)))
        return logarithms / (len(found) - 1)

    def is_usual(self, words: Sequence[str], document: int, least: int) -> bool:
        """True when no word follows the two words before the last of `words` in more of the other documents, `least` at the fewest.

        Where fewer than `least` other documents have those two, the one word before the last decides.
        """
        for context in (tuple(words[-3:-1]), tuple(words[-2:-1])):
            spread = {word: len(where - {document}) for word, where in self._followers.get(context, {}).items()}
            if sum(spread.values()) >= least:
                return spread.get(words[-1], 0) == max(spread.values()) >= least
        return False
