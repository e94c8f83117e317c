"""Names and files to model configurations. The sizes themselves are data: `model_configs/*.json`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from open_lm import storage
from open_lm.model.config import ModelConfig, model_config_from
from open_lm.params.fields import nearest
from open_lm.storage.yaml_json import read_json

CONFIG_FOLDER = Path(__file__).resolve().parents[1] / "model_configs"


def named_models() -> dict[str, Path]:
    """The configuration file of every named size, smallest name first."""
    return {path.stem: path for path in sorted(CONFIG_FOLDER.glob("*.json"))}


class NoSuchModelFile(ValueError):
    """A model.json that isn't there."""


def model_name(model: str) -> str:
    """What messages call it: itself, but for a configuration in the place of a name."""
    return "inline" if model.startswith("{") else model


def get_model_config(model: str, defaults: Mapping[str, Any] | None = None) -> ModelConfig:
    """The configuration of a named size or of a model.json.

    Args:
        model: `open_lm_1b`, the path or URL of a JSON file, or the JSON itself.
        defaults: values of the flags, for keys that the file lacks.

    Raises:
        ValueError: no such name (the nearest is given) or file (`NoSuchModelFile`), or wrong content.
    """
    return model_config_from(model_values(model), model_name(model), defaults)


def model_values(model: str) -> dict[str, Any]:
    """What the configuration of a named size or a model.json says, under today's names. Raises ValueError as `get_model_config`."""
    names = named_models()
    source, inline = str(names.get(model, model)), model.startswith("{")
    if model not in names and not model.endswith(".json") and not inline:
        raise ValueError(f"--model {model}: no such size.{nearest(model, names)} Sizes: {', '.join(names)}; or give a model.json")
    try:
        values = read_json(model.encode() if inline else storage.read_bytes(source))
    except FileNotFoundError:
        near = nearest(Path(model).stem, names)
        raise NoSuchModelFile(f"--model {model}: no such file; give the path of a model.json or a named size.{near}") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"--model {model}: can't be read: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"--model {model}: must hold one JSON object")
    if values.pop("rotary_old", False) and values.setdefault("positional_embedding_type", "head_rotary") != "head_rotary":
        raise ValueError(f"--model {model}: rotary_old is the first name of positional_embedding_type head_rotary; give one of the two")
    return values
