"""A model to score, whatever it is: one of our checkpoints, or a stock one of Hugging Face."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from open_lm.checkpoint.load import choose_config, load_model, outline
from open_lm.checkpoint.weights import load_weights
from open_lm.device import choose_device
from open_lm.evaluation.hf_model import HFModel, load_hf_model
from open_lm.evaluation.hf_tokenizer import Declared, load_hf_tokenizer
from open_lm.evaluation.processes import own_device
from open_lm.generation import generate
from open_lm.model.attention import KernelName, get_kernel
from open_lm.model.transformer import Transformer
from open_lm.params.fields import Problems
from open_lm.tokenizer import Tokenizer, choose_tokenizer


@dataclass(frozen=True)
class ModelChoice:
    """What the command line says of the checkpoints' model."""

    config: str | None = None
    """Named size or model.json, for checkpoints that carry none."""
    flags: Mapping[str, Any] = field(default_factory=dict)
    """What a model.json may leave out, by key."""
    kernel: KernelName = "auto"
    """Of the attention."""

    def load(self, checkpoint: str, device: str | torch.device = "cpu") -> tuple[Transformer, Tokenizer | None]:
        """As `open_lm.checkpoint.load.load_model`."""
        return load_model(checkpoint, self.config, device, self.flags, self.kernel)

    def check(self, checkpoints: Sequence[str]) -> None:
        """Raises UserError where a checkpoint is not there, is damaged, or is another model's, as far as that is to be seen in a moment."""
        problems = Problems()
        problems.attempt(get_kernel, self.kernel)
        for checkpoint in () if problems.found else checkpoints:
            problems.attempt(self._check, checkpoint)
        problems.found = list(dict.fromkeys(problems.found))
        problems.raise_any()

    def _check(self, checkpoint: str) -> None:
        file, path = outline(checkpoint)
        if file is None:
            return
        with torch.device("meta"):
            model = Transformer(choose_config(file, path, self.config, self.flags), get_kernel(self.kernel))
        load_weights(model, file.state_dict, path, file.keys)


@dataclass(frozen=True)
class OpenModel:
    """Ready for evaluation: fp32, in eval mode, on its device."""

    model: Transformer | HFModel
    tokenizer: Tokenizer
    seq_len: int
    """Longest sequence that it was made for."""
    declared: Declared = field(default_factory=Declared)


def open_model(name: str, *, hf: bool, choice: ModelChoice, tokenizer: str | None, device: str | None) -> OpenModel:
    """The model behind a name.

    Args:
        name: a checkpoint, as `open_lm.checkpoint.load.open_weights` takes it; with `hf` a Hugging Face name or folder.
        choice: of a checkpoint's model.
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
    model, carried = choice.load(name, place)
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
) -> list[list[int]]:
    """Greedy new ids of each prompt, through the model's own `generate`: until the end of text or where `stop` says so.

    Args:
        ends: ids that end a text of a Hugging Face model as well.
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
        named="generation of answers",
    )
