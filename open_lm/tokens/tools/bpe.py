"""Training a tokenizer: byte-level BPE that gives back every text exactly.

Texts in, a `tokenizers.Tokenizer` out. No normaliser, no prefix space, all 256 bytes in the vocabulary, so nothing is unknown and
decode(encode(text)) == text. Ids: 0 end of text, 1 padding, 2 to 257 the bytes, then the merges in the order they were learnt.
The same texts in the same order give the same file, whatever the number of threads.

Memory: about 1 KB for each different word of the sample (measured on random words of 8 letters); so `--sample-bytes` bounds it.
A hundredth of the texts is held out, and shows what the vocabulary does on text it has not seen.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from open_lm import storage
from open_lm.params.fields import UserError, counted
from open_lm.progress import Progress
from open_lm.tokens.tools.tool_files import output_problems

if TYPE_CHECKING:
    import tokenizers

END_OF_TEXT = "<|endoftext|>"
PADDING = "<|padding|>"
SPECIAL_TOKENS = (END_OF_TEXT, PADDING)
SMALLEST_VOCABULARY = len(SPECIAL_TOKENS) + 256
HELDOUT_SHARE, _HELDOUT_BYTES = 0.01, 4 << 20
"""Of the sample, what is not trained on: a share of the texts, and fewer where that is more bytes than these."""
_PIECE = 1 << 18
"""Characters that are counted at a time: `tokenizers` keeps a record of every word of a text it is given."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Vocabulary:
    """What a vocabulary makes of some texts."""

    documents: int
    bytes: int
    characters: int
    tokens: int
    single_bytes: int
    """Tokens that stand for one byte outside ASCII, where no merge was learnt."""
    ids_used: int

    @property
    def characters_per_token(self) -> float:
        """0 without tokens."""
        return self.characters / self.tokens if self.tokens else 0.0

    @property
    def bytes_per_token(self) -> float:
        """0 without tokens."""
        return self.bytes / self.tokens if self.tokens else 0.0


@dataclass(frozen=True)
class TrainedTokenizer:
    """What was written."""

    path: Path
    vocab_size: int
    """Smaller than asked for where the texts have no more pairs to merge."""
    documents: int
    """Trained on."""
    bytes: int
    """Trained on, UTF-8."""
    heldout: Vocabulary | None
    """On texts that were not trained on; None where there were too few texts to hold some out."""
    trained_on: Vocabulary
    """On some of the others."""
    longest: tuple[str, ...]
    """The longest tokens that are text."""


def train_bpe(texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
    """A byte-level BPE tokenizer of at most `vocab_size` ids, specials and bytes included.

    Raises:
        ValueError: a vocabulary too small for the bytes and the special tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocab_size < SMALLEST_VOCABULARY:
        raise ValueError(_too_small(vocab_size))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    with Progress("training"):
        tokenizer.train_from_iterator((piece for text in texts for piece in cut_at_spaces(text, _PIECE)), trainer)
    return tokenizer


def cut_at_spaces(text: str, length: int) -> Iterator[str]:
    """A text in pieces of at most `length` characters, cut before a space where a piece has one, so that words stay whole."""
    start = 0
    while len(text) - start > length:
        space = text.rfind(" ", start + 1, start + length)
        stop = space if space > 0 else start + length
        yield text[start:stop]
        start = stop
    yield text[start:]


def _too_small(vocab_size: int) -> str:
    return f"--vocab-size {vocab_size}: give {SMALLEST_VOCABULARY} or more (256 bytes and {len(SPECIAL_TOKENS)} special tokens)"


def arbitrary_texts() -> list[str]:
    """Texts that a corpus may lack: the first two planes of Unicode, odd spaces, the special tokens."""
    planes = [chr(c) for c in range(0x20000) if not 0xD800 <= c < 0xE000]
    blocks = ["".join(planes[i : i + 4096]) for i in range(0, len(planes), 4096)]
    latin = ["".join(chr((i * step) % 256) for i in range(256)) for step in (1, 3, 85, 129)]
    spaces = ["", " ", "  leading", "trailing  ", "\n\n\t \r\n", "a  b   c", "\ufeffmark", "e\u0301 \u00e9", "\x00\x01"]
    return [*blocks, *latin, *spaces, *(f"x{special} y" for special in SPECIAL_TOKENS)]


def check_reversible(tokenizer: tokenizers.Tokenizer, texts: Iterable[str]) -> Vocabulary:
    """Encode and decode `arbitrary_texts()` and `texts`; what the vocabulary makes of the latter.

    Raises:
        ValueError: the specials or bytes are not where they belong, or a text comes back changed; the message shows where.
    """
    expected = {token: i for i, token in enumerate(SPECIAL_TOKENS)}
    found = {token: tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}
    if found != expected:
        raise ValueError(f"the trained tokenizer has the special tokens {found}; expected {expected}")
    for text in arbitrary_texts():
        _check_one(tokenizer, text)
    uses: Counter[int] = Counter()
    documents = size = characters = 0
    for text in texts:
        uses.update(_check_one(tokenizer, text))
        documents, size, characters = documents + 1, size + len(text.encode()), characters + len(text)
    parts = [i for i in range(len(SPECIAL_TOKENS), SMALLEST_VOCABULARY) if not tokenizer.decode([i]).isascii()]
    return Vocabulary(documents, size, characters, uses.total(), sum(uses[i] for i in parts), len(uses))


def _check_one(tokenizer: tokenizers.Tokenizer, text: str) -> list[int]:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    back = tokenizer.decode(ids, skip_special_tokens=False)
    if back != text:
        at = next((i for i, (a, b) in enumerate(zip(text, back, strict=False)) if a != b), min(len(text), len(back)))
        raise ValueError(
            f"the trained tokenizer is not reversible: character {at} of a text of {len(text)}: "
            f"{text[at : at + 20]!r} came back as {back[at : at + 20]!r}"
        )
    return list(ids)


@dataclass
class Sample:
    """Texts to train on and to hold out, chosen by a hash of their numbers, so that the choice is always the same.

    Args:
        read: gives the texts; called twice, for the total and for the texts themselves.
        sample_bytes: train on and hold out about so many, spread evenly; all of them for None.
    """

    read: Callable[[], Iterator[str]]
    sample_bytes: int | None = None
    documents: int = 0
    """Handed out for training, so far."""
    bytes: int = 0
    heldout: list[str] = field(default_factory=list)
    """The first MiB characters of each, at most."""
    trained_on: list[str] = field(default_factory=list)
    """Some of those handed out, for comparison, of the same size as the held-out ones."""

    def texts(self) -> Iterator[str]:
        """The texts to train on, and on the way all the rest. To be read once, to the end."""
        documents, total = self._measure()
        wanted = total if self.sample_bytes is None else min(self.sample_bytes, total)
        share = min(HELDOUT_SHARE, _HELDOUT_BYTES / max(wanted, 1)) if documents > 1 else 0.0
        with Progress("counting words", max(1, wanted // 10**6), "MB", look=lambda: self.bytes // 10**6):
            for number, text in enumerate(self.read()):
                chosen, held = _numbers(number)
                if chosen * total >= wanted * 2**64:
                    continue
                if held < share * 2**64:
                    self.heldout.append(text[: 1 << 20])
                    continue
                self._keep_some(held, share, text)
                self.documents, self.bytes = self.documents + 1, self.bytes + len(text.encode())
                yield text
        log.info("counted %s, %.1f MB; learning the merges", counted(self.documents, "document"), self.bytes / 1e6)

    def _keep_some(self, number: int, share: float, text: str) -> None:
        if number >= (1 - share) * 2**64 or not self.trained_on:
            self.trained_on.append(text[: 1 << 20])

    def _measure(self) -> tuple[int, int]:
        documents = total = 0
        with Progress("measuring the texts", unit="documents") as shown:
            for text in self.read():
                documents, total = documents + 1, total + len(text.encode())
                shown.done = documents
        return documents, total


def _numbers(number: int) -> tuple[int, int]:
    """Two numbers below 2**64 that depend on a text's number alone."""
    digest = hashlib.sha256(number.to_bytes(8, "big")).digest()
    return int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:16], "big")


def _check_request(output: str | Path, vocab_size: int, sample_bytes: int | None, overwrite: bool) -> Path:
    problems = output_problems({"--output": str(output)}, overwrite)  # of a tokenizer that shards were made with above all
    if vocab_size < SMALLEST_VOCABULARY:
        problems.append(_too_small(vocab_size))
    if sample_bytes is not None and sample_bytes <= 0:
        problems.append(f"--sample-bytes {sample_bytes}: give a positive number of bytes")
    if problems:
        raise UserError(problems)
    return Path(output).expanduser()


def write_tokenizer(
    read: Callable[[], Iterator[str]], output: str | Path, vocab_size: int, *, sample_bytes: int | None = None, overwrite: bool = False
) -> TrainedTokenizer:
    """Train on the texts of `read()` (called several times, always the same texts), check, and write a tokenizer.json.

    Raises:
        ValueError: the output exists, a size that can't be, no text, a tokenizer that is not reversible.
    """
    path = _check_request(output, vocab_size, sample_bytes, overwrite)
    sample = Sample(read, sample_bytes)
    tokenizer = train_bpe(sample.texts(), vocab_size)
    if not sample.bytes:
        raise ValueError("--input-files: no text in them to train on" + (", or --sample-bytes is too small" if sample_bytes else ""))
    trained_on = check_reversible(tokenizer, sample.trained_on)
    heldout = check_reversible(tokenizer, sample.heldout) if any(sample.heldout) else None
    with storage.atomic_write(path) as file:
        file.write(tokenizer.to_str(pretty=True).encode())
    longest = _longest(tokenizer)
    return TrainedTokenizer(path, tokenizer.get_vocab_size(), sample.documents, sample.bytes, heldout, trained_on, longest)


def _longest(tokenizer: tokenizers.Tokenizer, number: int = 8) -> tuple[str, ...]:
    """The longest tokens with a letter in them, longest first."""
    texts = (tokenizer.decode([i]) for i in range(SMALLEST_VOCABULARY, tokenizer.get_vocab_size()))
    return tuple(sorted((t for t in texts if any(map(str.isalpha, t))), key=lambda t: (-len(t), t))[:number])
