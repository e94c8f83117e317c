"""Stock causal models of Hugging Face transformers behind the scorer: logits and losses of chosen positions, greedy continuations."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from open_lm import storage
from open_lm.evaluation.hf_tokenizer import hf_source
from open_lm.params.fields import counted

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
        tables = (name for name, part in model.named_modules() if isinstance(part, nn.Embedding))
        self.learned_positions = any("position" in name or name.endswith("wpe") for name in tables)

    @property
    def own_ends(self) -> tuple[int, ...]:
        """The ids at which its generation configuration ends a text."""
        ends = self.model.generation_config.eos_token_id
        return tuple(ends) if isinstance(ends, (list, tuple)) else () if ends is None else (int(ends),)

    def logits_at(self, input_ids: Tensor, positions: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """fp32 logits [n, vocab] of flat positions [n] of input_ids [batch, seq].

        Raises:
            ValueError: more tokens than a model with learned positions has.
        """
        self._check_length(input_ids.shape[1])
        with _only(self.model.get_output_embeddings(), positions) as taken:
            logits = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits.flatten(0, 1)
        return (logits if taken() else logits[positions]).float()

    def token_losses(self, input_ids: Tensor, positions: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """As `open_lm.model.head.token_losses`, for flat positions [n] of input_ids [batch, seq] and targets [n]."""
        logits = self.logits_at(input_ids, positions)
        return F.cross_entropy(logits, targets, reduction="none"), logits.argmax(-1) == targets

    def _check_length(self, length: int) -> None:
        if self.learned_positions and length > self.seq_len:
            raise ValueError(
                f"--max-seq-len: a request of {length} tokens, and the model has learned positions for {self.seq_len}; "
                f"give --max-seq-len {self.seq_len}, and no larger max_seq_len to a task"
            )

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        stop: Callable[[list[int]], bool],
        eot_id: int,
        ends: Sequence[int] = (),
    ) -> list[list[int]]:
        """Greedy new ids of each prompt, left-padded together, until the end of text (not among them) or where `stop` says so.

        Args:
            ends: ids that end a text as well as `eot_id` does.

        Raises:
            ValueError: more tokens than a model with learned positions has.
        """
        from transformers import StoppingCriteria, StoppingCriteriaList

        device = next(self.parameters()).device
        width = max(map(len, prompts))
        self._check_length(width + max_new_tokens)
        ids = torch.tensor([[eot_id] * (width - len(p)) + list(p) for p in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)

        class Stop(StoppingCriteria):  # type: ignore[misc, unused-ignore]
            def __call__(self, ids: Tensor, scores: Any, **more: Any) -> Tensor:
                return torch.tensor([stop(row) for row in ids[:, width:].tolist()], device=ids.device)

        out = self.model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1,
            temperature=None, top_p=None, top_k=None,
            pad_token_id=eot_id, eos_token_id=[eot_id, *ends], stopping_criteria=StoppingCriteriaList([Stop()]),
        )  # fmt: skip
        return [_before(row, {eot_id, *ends}) for row in out[:, width:].tolist()]


def _before(ids: list[int], ends: set[int]) -> list[int]:
    """The ids before the first end."""
    return ids[: next((place for place, i in enumerate(ids) if i in ends), len(ids))]


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


def load_hf_model(source: str, device: str | torch.device) -> HFModel:
    """A causal model by name or folder, in fp32 and eval mode. Code that comes with it is not run.

    Raises:
        ValueError: nothing to load, weights that don't fit, or no stock causal language model, with the remedy.
    """
    import transformers
    from safetensors import SafetensorError

    transformers.utils.logging.disable_progress_bar()
    dtype: Any = "dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype"
    options: dict[str, Any] = {**hf_source(source), dtype: torch.float32}
    try:
        made: Any = transformers.AutoModelForCausalLM.from_pretrained(trust_remote_code=False, output_loading_info=True, **options)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, pickle.UnpicklingError, SafetensorError) as error:
        reason = _other_file(storage.local_path(source)) or " ".join(str(error).split())
        if "weights_only" in reason:  # torch's words advise to load them unsafely
            reason = "its weights are damaged, or hold more than tensors"
        if "trust_remote_code" in reason:
            raise ValueError(
                f"--hf-model {source}: is made of code that lies beside its weights, which is never run; give a model whose class "
                "transformers has itself"
            ) from None
        raise ValueError(
            f"--hf-model {source}: can't be loaded as a causal language model ({reason[:200]}); check name and network, or give a folder"
        ) from None
    model, about = made
    missing = sorted({*about["missing_keys"]} & {name for name, _ in model.named_parameters()})
    if missing:
        raise ValueError(
            f"--hf-model {source}: its weights lack {counted(len(missing), 'tensor')}, such as {missing[0]}; give the whole model"
        )
    model = model.float().to(device).eval()
    if not _looks_back_only(model):
        raise ValueError(f"--hf-model {source}: its {type(model).__name__} sees the tokens to come; give a causal language model")
    return HFModel(model)


def _other_file(folder: Path) -> str:
    """The first file of a model's folder that only stands for another one, in words."""
    for path in sorted(folder.glob("*")) if folder.is_dir() else ():
        if path.suffix in (".safetensors", ".bin", ".json"):
            with path.open("rb") as file:
                kind = storage.file_kind(begin := file.read(storage.FIRST_BYTES))
            if kind and kind.text and kind.remedy and not storage.is_json(begin):
                return f"{path.name} is {kind.name}; {kind.remedy}"
    return ""


@torch.no_grad()
def _looks_back_only(model: Any) -> bool:
    """Whether the first token's logits don't depend on the second: of BERT and its like transformers makes a "causal" model, too."""
    ids = torch.tensor([[0, 1], [0, 2]], device=next(model.parameters()).device)
    first, second = model(input_ids=ids, use_cache=False).logits[:, 0].float()
    return torch.allclose(first, second, rtol=1e-3, atol=1e-3 * float(first.abs().max()))
