"""Running averages of the weights as text: `ema_0.999_1,poly_16_1`, each `<method>_<parameter>_<freq>` as in OpenLM."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

_NUMBER = re.compile(r"[0-9]*\.?[0-9]+(e-?[0-9]+)?|[0-9]+\.")
_FORMS = "use ema_<gamma>_<freq>, e.g. ema_0.999_1, or poly_<eta>_<freq>, e.g. poly_16_1"
_DEFAULTS = {"ema": "0.99", "poly": "0"}


@dataclass(frozen=True)
class AveragerSpec:
    """One running average."""

    name: str
    """Its text as given: what files and metrics call it."""
    method: Literal["ema", "poly"]
    parameter: float
    """gamma of ema, the share of the old average that stays; eta of poly, the power with which weights grow over the updates."""
    freq: int = 1
    """Steps between updates."""


def averager_names(text: str | None) -> list[str]:
    """The parts of the text."""
    return [part.strip() for part in text.split(",")] if text else []


def parse_averagers(text: str | None) -> tuple[AveragerSpec, ...]:
    """What --averagers means; parameter and freq may be left out (ema_0.99_1, poly_0_1).

    Raises:
        ValueError: with every part that is no averager or is there twice.
    """
    specs, problems = [], []
    names = averager_names(text)
    for name in names:
        try:
            specs.append(_parse_one(name))
        except ValueError as error:
            problems.append(f"{name!r} {error}")
    problems += [f"{name!r} is there twice; leave one out" for name in dict.fromkeys(names) if names.count(name) > 1]
    if problems:
        raise ValueError(f"--averagers {text}: {'; '.join(problems)}")
    return tuple(specs)


def _parse_one(name: str) -> AveragerSpec:
    method, *given = name.split("_")
    if method not in _DEFAULTS or len(given) > 2:
        raise ValueError(f"is no averager; {_FORMS}")
    parameter, freq = [*given, *(_DEFAULTS[method], "1")[len(given) :]]
    if not _NUMBER.fullmatch(parameter) or not re.fullmatch("[0-9]+", freq):
        raise ValueError(f"has no number in its place; {_FORMS}")
    if method == "ema" and not float(parameter) < 1:
        raise ValueError(f"keeps all of the old average; give a gamma from 0 to below 1, e.g. ema_0.999_{freq}")
    if int(freq) < 1:
        raise ValueError(f"never updates; give 1 or more steps between updates, e.g. {method}_{parameter}_1")
    return AveragerSpec(name, "ema" if method == "ema" else "poly", float(parameter), int(freq))
