"""A model to score, whatever it is: one of our checkpoints, or a stock one of Hugging Face."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import nn

from open_lm.checkpoint.load import load_model
from open_lm.device import choose_device
from open_lm.evaluation.hf_model import HFModel, load_hf_model
from open_lm.evaluation.hf_tokenizer import Declared, load_hf_tokenizer
from open_lm.evaluation.processes import own_device
from open_lm.generation import generate
from open_lm.model.transformer import Transformer
from open_lm.tokenizer import Tokenizer, choose_tokenizer


@dataclass(frozen=True)
class OpenModel:
    """Ready for evaluation: fp32, in eval mode, on its device."""

    model: Transformer | HFModel
    tokenizer: Tokenizer
    seq_len: int
    """Longest sequence that it was made for."""
    declared: Declared = field(default_factory=Declared)


def open_model(name: str, *, hf: bool, config: str | None, tokenizer: str | None, device: str | None) -> OpenModel:
    """The model behind a name.

    Args:
        name: a checkpoint, as `open_lm.checkpoint.load.open_weights` takes it; with `hf` a Hugging Face name or folder.
        config: named size or model.json, for checkpoints that carry none.
        tokenizer: value of --tokenizer.
        device: value of --device.

    Raises:
        ValueError: nothing to load, or no tokenizer for it.
    """
    place = choose_device(own_device(device))
    if hf:
        beside, declared = (None, Declared()) if tokenizer else load_hf_tokenizer(name)
        stock = load_hf_model(name, place)
        return OpenModel(stock, choose_tokenizer(tokenizer, beside, stock.vocab_size), stock.seq_len, declared)
    model, carried = load_model(name, config, place)
    return OpenModel(model.float(), choose_tokenizer(tokenizer, carried, model.config.vocab_size), model.config.seq_len)


def context_length(model: nn.Module) -> int:
    """Longest sequence that a model was made for."""
    return model.seq_len if isinstance(model, HFModel) else model.config.seq_len  # type: ignore[union-attr, return-value]


def continue_prompts(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    eot_id: int,
    stop: Callable[[list[int]], bool] = lambda ids: False,
    ends: Sequence[int] = (),
    agree: Callable[[list[int]], list[int]] | None = None,
) -> list[list[int]]:
    """Greedy new ids of each prompt, through the model's own `generate`: until the end of text or where `stop` says so.

    Args:
        ends: ids that end a text of a Hugging Face model as well.
        agree: as `open_lm.generation.generate` takes it, of ours.
    """
    if isinstance(model, HFModel):
        return model.generate(prompts, max_new_tokens, stop, eot_id, ends)
    room = max(map(len, prompts)) + max_new_tokens
    return generate(
        model,  # type: ignore[arg-type]
        prompts,
        max_new_tokens=max_new_tokens,
        eot_id=eot_id,
        max_seq_len=room,
        stop=stop,
        agree=agree,
        named="generation of answers",
    )
