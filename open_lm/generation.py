"""Prompts to continuations: greedy, or sampled with temperature, top-k and top-p.

Keys and values of what was read are kept (`open_lm.model.cache`), so that a step reads one token a prompt. Prompts of unequal length
stand at the left of the batch, padding at their right, which nothing attends to: each continues as it does alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from open_lm.model.cache import KeyValueCache
from open_lm.model.transformer import Transformer
from open_lm.progress import Progress

PAD = 0


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    temperature: float = 0.0
    """0 takes the most likely token."""
    top_k: int | None = None
    """Choose among so many most likely tokens."""
    top_p: float | None = None
    """Choose among the fewest most likely tokens whose probabilities reach this sum."""

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise ValueError(f"--temperature {self.temperature}: give 0 for greedy, or a number above 0")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"--top-k {self.top_k}: give at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"--top-p {self.top_p}: give a number above 0, at most 1")


@torch.no_grad()
def generate(
    model: Transformer,
    prompt_ids: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    eot_id: int | None = None,
    max_seq_len: int | None = None,
    stop: Callable[[list[int]], bool] | None = None,
    named: str = "--prompt",
) -> list[list[int]]:
    """New ids for each prompt, the prompt itself and the end of text not among them.

    A continuation ends at `max_new_tokens`, at `eot_id`, where `stop` says so, or where prompt and continuation together fill
    `max_seq_len`. Each prompt draws from a generator of its own, made from (seed, index of the prompt), so that a sample doesn't
    depend on the other prompts of the batch. `model` should be in eval mode.

    Args:
        max_seq_len: default: the model's seq_len.
        stop: asked after each new id, with all new ids of that prompt.
        named: where the prompts came from, for errors.

    Raises:
        ValueError: an empty prompt, one that leaves no room in the context, or sampling options out of range.
    """
    sampling = Sampling(temperature, top_k, top_p)
    prompts = [list(ids) for ids in prompt_ids]
    limit = max_seq_len or model.config.seq_len
    _check_prompts(prompts, limit, model.config.vocab_size, named)
    if max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens {max_new_tokens}: give at least 1")
    generators = [_generator(seed, index) for index in range(len(prompts))]
    new: list[list[int]] = [[] for _ in prompts]
    active, cache = list(range(len(prompts))), KeyValueCache()
    logits = next_logits(model, prompts, cache).cpu()
    with Progress("generating", max_new_tokens, "tokens") as shown:
        for step in range(max_new_tokens):
            shown.done = step
            going = []
            for row, i in enumerate(active):
                chosen = choose(logits[row], sampling, generators[i])
                if chosen == eot_id:
                    continue
                new[i].append(chosen)
                if len(prompts[i]) + len(new[i]) < limit and not (stop and stop(new[i])):
                    going.append(row)
            if not going or step + 1 == max_new_tokens:
                break
            if len(going) < len(active):
                active = [active[row] for row in going]
                cache.keep_rows(torch.tensor(going, device=next(model.parameters()).device))
            logits = next_logits(model, [new[i][-1:] for i in active], cache).cpu()
    return new


def _generator(seed: int, index: int) -> torch.Generator:
    # torch's CPU generator takes 32 bits of a seed only, so the pair is hashed into them.
    return torch.Generator().manual_seed(random.Random(f"{seed} {index}").getrandbits(32))


def _check_prompts(prompts: Sequence[Sequence[int]], seq_len: int, vocab_size: int, named: str) -> None:
    for number, ids in enumerate(prompts, 1):
        if not ids:
            raise ValueError(f"{named}: prompt {number} is empty; give at least one token, such as the end of text")
        if len(ids) >= seq_len:
            raise ValueError(f"{named}: prompt {number} has {len(ids)} tokens; the model's context of {seq_len} leaves no room, shorten it")
        if not 0 <= min(ids) <= max(ids) < vocab_size:
            raise ValueError(f"{named}: prompt {number} has ids outside the model's vocabulary of {vocab_size}; check --tokenizer")


@torch.no_grad()
def next_logits(model: Transformer, sequences: Sequence[Sequence[int]], cache: KeyValueCache | None = None) -> Tensor:
    """fp32 logits [batch, vocab] of the token after each sequence; the sequences may differ in length and go on from the cache."""
    device = next(model.parameters()).device
    lengths = torch.tensor([len(ids) for ids in sequences], device=device)
    width = int(lengths.max())
    input_ids = torch.tensor([[*ids, *[PAD] * (width - len(ids))] for ids in sequences], dtype=torch.int64, device=device)
    rows = torch.arange(len(sequences), device=device)
    if cache is not None:
        cache.real = torch.arange(width, device=device) < lengths[:, None]
    logits: Tensor = model(input_ids, head=lambda hidden, weight: F.linear(hidden[rows, lengths - 1], weight), cache=cache)
    return logits.float()


def choose(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """One id from logits [vocab] fp32 on the CPU: temperature first, then top-k, then top-p over what is left."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    values, ids = (logits / sampling.temperature).sort(descending=True, stable=True)
    values, ids = values[: sampling.top_k], ids[: sampling.top_k]
    probabilities = values.softmax(0)
    if sampling.top_p is not None:
        before = probabilities.cumsum(0) - probabilities
        probabilities = probabilities[before < sampling.top_p]
    return int(ids[torch.multinomial(probabilities, 1, generator=generator)])
