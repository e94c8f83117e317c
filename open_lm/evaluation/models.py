"""A model to score, whatever it is: one of our checkpoints, or a stock one of Hugging Face."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from open_lm.checkpoint.load import carried_tokenizer, choose_config, load_model, outline
from open_lm.checkpoint.weights import load_weights
from open_lm.device import choose_device
from open_lm.evaluation.hf_model import HFModel, load_hf_model
from open_lm.evaluation.hf_tokenizer import Declared, load_hf_tokenizer
from open_lm.evaluation.processes import own_device
from open_lm.generation import generate
from open_lm.model.attention import KernelName, get_kernel
from open_lm.model.transformer import Transformer
from open_lm.params.fields import Problems
from open_lm.tokenizer import Tokenizer, check_match, choose_tokenizer, load_tokenizer


@dataclass(frozen=True)
class ModelChoice:
    """What the command line says of the checkpoints' model."""

    config: str | None = None
    """Named size or model.json, for checkpoints that carry none."""
    flags: Mapping[str, Any] = field(default_factory=dict)
    """What a model.json may leave out, by key."""
    kernel: KernelName = "auto"
    """Of the attention."""
    allow_tokenizer_mismatch: bool = False
    """A tokenizer that is named may be another one than a checkpoint's own."""

    def load(self, checkpoint: str, device: str | torch.device = "cpu") -> tuple[Transformer, Tokenizer | None]:
        """As `open_lm.checkpoint.load.load_model`."""
        return load_model(checkpoint, self.config, device, self.flags, self.kernel)

    def check(self, checkpoints: Sequence[str], tokenizer: str | None = None, hf_models: Sequence[str] = ()) -> None:
        """What is to be seen of the checkpoints in a moment.

        Args:
            tokenizer: value of --tokenizer.
            hf_models: of --hf-model, where the tokenizer is meant for them.

        Raises:
            UserError: one is not there, is damaged, or is another model's or another tokenizer's.
        """
        problems = Problems()
        problems.attempt(get_kernel, self.kernel)
        named = problems.attempt(load_tokenizer, tokenizer) if tokenizer else None
        for checkpoint in () if problems.found else checkpoints:
            problems.attempt(self._check, checkpoint, named)
        for name in hf_models if named else ():
            holders = [(f"--hf-model {name}", _beside(name, another=True)[0]), (f"--tokenizer {tokenizer}", named)]
            problems.attempt(check_match, holders, self.allow_tokenizer_mismatch)
        problems.found = list(dict.fromkeys(problems.found))
        problems.raise_any()

    def _check(self, checkpoint: str, named: Tokenizer | None) -> None:
        file, path = outline(checkpoint)
        if named:
            holders = [(f"checkpoint {checkpoint}", carried_tokenizer(file, path)), (f"--tokenizer {named.name}", named)]
            check_match(holders, self.allow_tokenizer_mismatch)
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
    own_tokenizer: bool = True
    """It says which one is its own."""


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
    place, allow = choose_device(own_device(device)), choice.allow_tokenizer_mismatch
    if hf:
        beside, declared = _beside(name, tokenizer is not None)
        stock = load_hf_model(name, place)
        return OpenModel(stock, choose_tokenizer(tokenizer, beside, stock.vocab_size, allow), stock.seq_len, declared)
    model, carried = choice.load(name, place)
    chosen = choose_tokenizer(tokenizer, carried, model.config.vocab_size, allow)
    return OpenModel(model.float(), chosen, model.config.seq_len, own_tokenizer=carried is not None)


def _beside(name: str, another: bool) -> tuple[Tokenizer | None, Declared]:
    """The tokenizer of a Hugging Face model. Where `another` is named it is for comparison, if there is one."""
    if not another:
        return load_hf_tokenizer(name)
    try:
        return load_hf_tokenizer(name)[0], Declared()
    except ValueError:
        return None, Declared()


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
