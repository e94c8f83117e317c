"""Stock causal models of Hugging Face transformers behind the scorer: losses of chosen positions, greedy continuations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from open_lm.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    import torch.utils.hooks

DEFAULT_SEQ_LEN = 2048
_CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length", "max_seq_len")


class HFModel(nn.Module):
    """A `transformers` causal language model; `seq_len` and `vocab_size` as its configuration says."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model
        text = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
        self.seq_len = next((int(n) for name in _CONTEXT_NAMES if (n := getattr(text, name, None))), DEFAULT_SEQ_LEN)
        self.vocab_size = int(model.get_input_embeddings().weight.shape[0])

    def token_losses(self, input_ids: Tensor, positions: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """As `open_lm.model.head.token_losses`, for flat positions [n] of input_ids [batch, seq] and targets [n]."""
        with _only(self.model.get_output_embeddings(), positions) as taken:
            logits = self.model(input_ids=input_ids, use_cache=False).logits.flatten(0, 1)
        logits = (logits if taken() else logits[positions]).float()
        return F.cross_entropy(logits, targets, reduction="none"), logits.argmax(-1) == targets

    def generate(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, stop: Callable[[list[int]], bool], eot_id: int
    ) -> list[list[int]]:
        """Greedy new ids of each prompt, left-padded together, until the end of text (not among them) or where `stop` says so."""
        from transformers import StoppingCriteria, StoppingCriteriaList

        device = next(self.parameters()).device
        width = max(map(len, prompts))
        ids = torch.tensor([[eot_id] * (width - len(p)) + list(p) for p in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)

        class Stop(StoppingCriteria):  # type: ignore[misc, unused-ignore]
            def __call__(self, ids: Tensor, scores: Any, **more: Any) -> Tensor:
                return torch.tensor([stop(row) for row in ids[:, width:].tolist()], device=ids.device)

        out = self.model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1,
            temperature=None, top_p=None, top_k=None,
            pad_token_id=eot_id, eos_token_id=eot_id, stopping_criteria=StoppingCriteriaList([Stop()]),
        )  # fmt: skip
        return [row[: row.index(eot_id)] if eot_id in row else row for row in out[:, width:].tolist()]


class _only:
    """While open, the output head sees the chosen positions alone, [1, n, d] for [batch, seq, d]: whole logits never exist."""

    def __init__(self, head: nn.Module | None, positions: Tensor):
        self.head, self.positions, self.seen = head, positions, False
        self.hook: torch.utils.hooks.RemovableHandle | None = None

    def __enter__(self) -> Callable[[], bool]:
        if self.head is not None:
            self.hook = self.head.register_forward_pre_hook(self._take)
        return lambda: self.seen

    def _take(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        self.seen = True
        return (inputs[0].flatten(0, -2)[self.positions][None], *inputs[1:])

    def __exit__(self, *_: object) -> None:
        if self.hook is not None:
            self.hook.remove()


def load_hf_model(source: str, device: str | torch.device) -> tuple[HFModel, Tokenizer | None]:
    """A causal model by name or folder in fp32, and the tokenizer beside it (None where there is no tokenizer.json).

    Raises:
        ValueError: nothing to load, or no causal language model, with the remedy.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(source)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"--hf-model {source}: can't be loaded as a causal language model ({reason}); check name and network, or give a folder"
        ) from None
    return HFModel(model).to(device).float().eval(), _tokenizer_of(source)


def _tokenizer_of(source: str) -> Tokenizer | None:
    import json

    from open_lm import storage

    path = storage.local_path(source)
    if not path.is_dir():
        return load_tokenizer(source)
    if not (path / "tokenizer.json").is_file():
        return None
    about = path / "tokenizer_config.json"
    eos = json.loads(about.read_text(encoding="utf-8")).get("eos_token") if about.is_file() else None
    return load_tokenizer(source, eos.get("content") if isinstance(eos, dict) else eos)
