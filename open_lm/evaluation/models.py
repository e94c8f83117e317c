"""A model to score, whatever it is: one of our checkpoints, or a stock one of Hugging Face."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from open_lm.checkpoint.load import load_model
from open_lm.device import choose_device
from open_lm.evaluation.hf_model import load_hf_model
from open_lm.evaluation.processes import own_device
from open_lm.tokenizer import Tokenizer, choose_tokenizer


@dataclass(frozen=True)
class OpenModel:
    """Ready for evaluation: fp32, in eval mode, on its device."""

    model: nn.Module
    tokenizer: Tokenizer
    seq_len: int
    """Longest sequence that it was made for."""


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
        stock, beside = load_hf_model(name, place)
        return OpenModel(stock, choose_tokenizer(tokenizer, beside, stock.vocab_size), stock.seq_len)
    model, carried = load_model(name, config, place)
    return OpenModel(model.float(), choose_tokenizer(tokenizer, carried, model.config.vocab_size), model.config.seq_len)
