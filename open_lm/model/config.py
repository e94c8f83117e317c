"""The shape of a model: what `model.json` says, checked."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from open_lm.params.fields import UserError, nearest, suggestion

Norm = Literal["default_layer_norm", "lp_layer_norm", "gain_only_lp_layer_norm", "gain_only_layer_norm", "no_wb_layer_norm", "rms_norm"]
FeedForward = Literal["swiglu", "swiglu_torch", "gelu", "gemma_geglu"]
Positions = Literal["rotary", "head_rotary", "llama_rotary", "none"]


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides parameters and logits. `n_kv_heads`, `rope_theta` and `norm_eps` are ours, the rest is OpenLM's."""

    hidden_dim: int
    n_layers: int
    n_heads: int
    seq_len: int = 2048
    vocab_size: int = 50_432
    post_embed_norm: bool = False
    weight_tying: bool = False
    model_norm: Norm = "default_layer_norm"
    qk_norm: bool = False
    positional_embedding_type: Positions = "rotary"
    ffn_type: FeedForward = "swiglu"
    n_kv_heads: int | None = None
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5

    @property
    def head_dim(self) -> int:
        """Width of one head, k = d // h; h * k may be less than d (open_lm_87m)."""
        return self.hidden_dim // self.n_heads

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values: `n_kv_heads`, by default `n_heads`."""
        return self.n_kv_heads or self.n_heads

    @property
    def ffn_dim(self) -> int:
        """Width of the feed-forward layer: 4d for gelu, else 8d/3 rounded up to a multiple of 256."""
        if self.ffn_type == "gelu":
            return 4 * self.hidden_dim
        return 256 * ((int(8 * self.hidden_dim / 3) + 255) // 256)

    def to_dict(self) -> dict[str, Any]:
        """As in a model.json; the keys that are ours only where they differ from their defaults."""
        ours = {"n_kv_heads", "rope_theta", "norm_eps"}
        return {f.name: v for f, v in zip(fields(self), asdict(self).values()) if f.name not in ours or v != f.default}


# Keys of OpenLM's configurations that name no feature of ours; any other value than the one here is refused.
_ABSENT = {"moe_freq": 0, "moe_num_experts": None}


def model_config_from(values: Mapping[str, Any], name: str, defaults: Mapping[str, Any] | None = None) -> ModelConfig:
    """A checked configuration.

    Args:
        values: the content of a model.json.
        name: the file or size, for messages.
        defaults: values of the flags, used for keys that `values` lacks.

    Raises:
        UserError: with every wrong key and value.
    """
    known = {f.name: f for f in fields(ModelConfig)}
    problems, given = [], dict(defaults or {})
    for key, value in values.items():
        if key in known:
            given[key] = value
        elif key.startswith("moe_"):
            if _ABSENT.get(key, value) != value:
                problems.append(f"--model {name}: {key} {value}: mixture of experts is not part of this project")
        else:
            problems.append(f"--model {name}: unknown key {key}.{suggestion(key, known)}")
    problems += [f"--model {name}: needs the key {k}" for k in ("hidden_dim", "n_layers", "n_heads") if k not in given]
    hints = typing.get_type_hints(ModelConfig)
    problems += [p for key, value in given.items() if (p := _problem(name, key, value, hints[key]))]
    if not problems:
        config = ModelConfig(**given)
        problems = _shape_problems(config, name)
    if problems:
        raise UserError(problems)
    return config


def _problem(name: str, key: str, value: Any, kind: Any) -> str | None:
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if value in choices:
            return None
        return f"--model {name}: {key} {value}: choose one of {', '.join(choices)}.{nearest(str(value), choices)}"
    if kind is bool:
        return None if isinstance(value, bool) else f"--model {name}: {key} {value!r}: give true or false"
    if value is None and kind == int | None:
        return None
    whole = kind in (int, int | None)
    right = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool) and value > 0
    return None if right else f"--model {name}: {key} {value!r}: give a {'whole ' if whole else ''}number above 0"


def _shape_problems(config: ModelConfig, name: str) -> list[str]:
    problems = []
    if config.n_heads % config.kv_heads:
        problems.append(f"--model {name}: n_kv_heads {config.n_kv_heads}: must divide n_heads {config.n_heads}")
    if config.positional_embedding_type != "none" and config.head_dim % 2:
        problems.append(f"--model {name}: n_heads {config.n_heads}: rotary needs an even head width, not {config.head_dim}")
    if config.head_dim == 0:
        problems.append(f"--model {name}: n_heads {config.n_heads}: more heads than hidden_dim {config.hidden_dim}")
    return problems
