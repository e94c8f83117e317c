"""Training a tokenizer: byte-level BPE that gives back every text exactly.

Texts in, a `tokenizers.Tokenizer` out. No normaliser, no prefix space, all 256 bytes in the vocabulary, so nothing is unknown and
decode(encode(text)) == text. Ids: 0 end of text, 1 padding, 2 to 257 the bytes, then the merges in the order they were learnt.
The same texts in the same order give the same file, whatever the number of threads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from open_lm import storage

if TYPE_CHECKING:
    import tokenizers

END_OF_TEXT = "<|endoftext|>"
PADDING = "<|padding|>"
SPECIAL_TOKENS = (END_OF_TEXT, PADDING)
SMALLEST_VOCABULARY = len(SPECIAL_TOKENS) + 256
_CHECKED_BYTES = 2**20
"""Text that is encoded and decoded again before a tokenizer is written."""


@dataclass(frozen=True)
class TrainedTokenizer:
    """What was written."""

    path: Path
    vocab_size: int
    """Smaller than asked for where the texts have no more pairs to merge."""
    documents: int
    """Read for training."""
    bytes: int
    """Read for training, UTF-8."""
    characters_per_token: float
    """Over the texts of the check."""


def train_bpe(texts: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
    """A byte-level BPE tokenizer of at most `vocab_size` ids, specials and bytes included.

    Raises:
        ValueError: a vocabulary too small for the bytes and the special tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocab_size < SMALLEST_VOCABULARY:
        raise ValueError(
            f"--vocab-size {vocab_size}: give {SMALLEST_VOCABULARY} or more (256 bytes and {len(SPECIAL_TOKENS)} special tokens)"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def arbitrary_texts() -> list[str]:
    """Texts that a corpus may lack: the first two planes of Unicode, odd spaces, the special tokens."""
    planes = [chr(c) for c in range(0x20000) if not 0xD800 <= c < 0xE000]
    blocks = ["".join(planes[i : i + 4096]) for i in range(0, len(planes), 4096)]
    latin = ["".join(chr((i * step) % 256) for i in range(256)) for step in (1, 3, 85, 129)]
    spaces = ["", " ", "  leading", "trailing  ", "\n\n\t \r\n", "a  b   c", "\ufeffmark", "e\u0301 \u00e9", "\x00\x01"]
    return [*blocks, *latin, *spaces, *(f"x{special} y" for special in SPECIAL_TOKENS)]


def check_reversible(tokenizer: tokenizers.Tokenizer, texts: Iterable[str]) -> float:
    """Encode and decode `texts` and `arbitrary_texts()`; characters per token over `texts` (0 where they are empty).

    Raises:
        ValueError: the specials or bytes are not where they belong, or a text comes back changed; the message shows where.
    """
    expected = {token: i for i, token in enumerate(SPECIAL_TOKENS)}
    found = {token: tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}
    if found != expected:
        raise ValueError(f"the trained tokenizer has the special tokens {found}; expected {expected}")
    for text in arbitrary_texts():
        _check_one(tokenizer, text)
    characters = tokens = 0
    for text in texts:
        tokens += _check_one(tokenizer, text)
        characters += len(text)
    return characters / tokens if tokens else 0.0


def _check_one(tokenizer: tokenizers.Tokenizer, text: str) -> int:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    back = tokenizer.decode(ids, skip_special_tokens=False)
    if back != text:
        at = next((i for i, (a, b) in enumerate(zip(text, back, strict=False)) if a != b), min(len(text), len(back)))
        raise ValueError(
            f"the trained tokenizer is not reversible: character {at} of a text of {len(text)}: "
            f"{text[at : at + 20]!r} came back as {back[at : at + 20]!r}"
        )
    return len(ids)


def sample_texts(read: Callable[[], Iterator[str]], sample_bytes: int | None) -> Iterator[str]:
    """About `sample_bytes` bytes of the texts that `read()` gives, spread evenly over them; all of them for None.

    Reads twice, the first time for the total. A text is in the sample by a hash of its number, so the choice is always the same.
    """
    if sample_bytes is None:
        yield from read()
        return
    total = sum(len(text.encode()) for text in read())
    for number, text in enumerate(read()):
        digest = hashlib.sha256(number.to_bytes(8, "big")).digest()
        if int.from_bytes(digest[:8], "big") * total < sample_bytes * 2**64:
            yield text


def write_tokenizer(
    read: Callable[[], Iterator[str]], output: str | Path, vocab_size: int, *, sample_bytes: int | None = None, overwrite: bool = False
) -> TrainedTokenizer:
    """Train on the texts of `read()` (called several times, always the same texts), check, and write a tokenizer.json.

    Raises:
        ValueError: the output exists, a size that can't be, no text, a tokenizer that is not reversible.
    """
    path = Path(output)
    if path.exists() and not overwrite:
        raise ValueError(
            f"--output {output}: exists already; a tokenizer belongs to the shards made with it: choose another name or add --overwrite"
        )
    if sample_bytes is not None and sample_bytes <= 0:
        raise ValueError(f"--sample-bytes {sample_bytes}: give a positive number of bytes")
    counts = [0, 0]
    checked: list[str] = []

    def counted() -> Iterator[str]:
        for text in sample_texts(read, sample_bytes):
            size = len(text.encode())
            # the first texts, and a few from everywhere else
            if counts[1] < _CHECKED_BYTES // 2 or (counts[0] % 101 == 0 and sum(map(len, checked)) < _CHECKED_BYTES):
                checked.append(text)
            counts[0], counts[1] = counts[0] + 1, counts[1] + size
            yield text

    tokenizer = train_bpe(counted(), vocab_size)
    if not counts[1]:
        raise ValueError("--input-files: no text in them to train on")
    characters_per_token = check_reversible(tokenizer, checked)
    with storage.atomic_write(path) as file:
        file.write(tokenizer.to_str(pretty=True).encode())
    return TrainedTokenizer(path, tokenizer.get_vocab_size(), counts[0], counts[1], characters_per_token)
