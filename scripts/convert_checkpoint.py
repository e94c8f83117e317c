#!/usr/bin/env python
"""Look at a checkpoint, or bring it into another form. The work is in open_lm/checkpoint.

convert_checkpoint.py inspect --checkpoint logs/a
convert_checkpoint.py unshard --checkpoint logs/a/checkpoints/step_30 --out epoch_3.pt --optimizer
convert_checkpoint.py reshard --checkpoint epoch_3.pt --out logs/b/checkpoints
convert_checkpoint.py export-weights --checkpoint logs/a --out weights --dtype bfloat16
convert_checkpoint.py average --checkpoints epoch_1.pt epoch_2.pt --coefficients 0.25 0.75 --out mean.pt
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

sys.path[0] = str(Path(__file__).resolve().parents[1])

from open_lm.command_line import end_on_signals  # noqa: E402

end_on_signals(__name__)

from open_lm import storage  # noqa: E402
from open_lm.params.fields import UserError, nearest, parse_topics  # noqa: E402


@dataclass(frozen=True)
class InspectParams:
    """what to look at"""

    checkpoint: str = ""
    """A step_<n> folder, a .pt file, or a run folder."""


@dataclass(frozen=True)
class UnshardParams:
    """from a run state to OpenLM's files"""

    checkpoint: str = ""
    """The step_<n> folder."""
    out: str = ""
    """The weights file, such as epoch_3.pt."""
    optimizer: bool = False
    """Write optimizer_N.pt beside the epoch_N.pt too."""
    optimizer_keys: Literal["numbers", "names"] = "numbers"
    """What OpenLM resumes on one process or with DDP (numbers), or with --fsdp (names)."""


@dataclass(frozen=True)
class ReshardParams:
    """from OpenLM's files, or from many processes, to a run state"""

    checkpoint: str = ""
    """An epoch_N.pt with its optimizer_N.pt beside it, or a step_<n> folder."""
    out: str = ""
    """The checkpoints folder that gets the step_<n> folder."""
    model: str | None = None
    """Named size or model.json, for weights that carry no configuration."""


@dataclass(frozen=True)
class ExportParams:
    """from any checkpoint to weights that say all about themselves"""

    checkpoint: str = ""
    """A .pt file, a step_<n> folder or a run folder, local or behind a URL."""
    out: str = ""
    """The folder that gets NAME-HASH.pt."""
    name: str | None = None
    """Name of the file. Default: the name in the checkpoint."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type of the weights. Default: as they are."""
    model: str | None = None
    """Named size or model.json, for weights that carry no configuration."""
    tokenizer: str | None = None
    """tokenizer.json, a folder that holds one, or a Hugging Face name. Default: the checkpoint's own, if it has one."""
    allow_tokenizer_mismatch: bool = False
    """Put in a --tokenizer that is known to be another one than the checkpoint's own."""


@dataclass(frozen=True)
class AverageParams:
    """from several checkpoints to their weighted sum"""

    checkpoints: tuple[str, ...] = ()
    """.pt files, step_<n> folders or run folders of one model, local or behind a URL."""
    coefficients: tuple[float, ...] = ()
    """One each. Default: 1/n."""
    allow_tokenizer_mismatch: bool = False
    """Average checkpoints that are known to be of different tokenizers."""
    out: str = ""
    """The weights file."""


def _inspect(params: InspectParams) -> None:
    from open_lm.checkpoint.inspect import describe_checkpoint

    print("\n".join(describe_checkpoint(params.checkpoint)))


def _unshard(params: UnshardParams) -> None:
    from open_lm.checkpoint.convert import unshard

    for path in unshard(params.checkpoint, params.out, params.optimizer, params.optimizer_keys == "names"):
        print(path)


def _reshard(params: ReshardParams) -> None:
    from open_lm.checkpoint.convert import reshard

    print(reshard(params.checkpoint, params.out, params.model))


def _export(params: ExportParams) -> None:
    from open_lm.checkpoint.convert import export_weights

    how = (params.name, params.dtype, params.model, params.tokenizer, params.allow_tokenizer_mismatch)
    print(export_weights(params.checkpoint, params.out, *how))


def _average(params: AverageParams) -> None:
    from open_lm.checkpoint.convert import average

    print(average(params.checkpoints, params.coefficients, params.out, params.allow_tokenizer_mismatch))


COMMANDS: dict[str, tuple[type, Callable[[Any], None]]] = {
    "inspect": (InspectParams, _inspect),
    "unshard": (UnshardParams, _unshard),
    "reshard": (ReshardParams, _reshard),
    "export-weights": (ExportParams, _export),
    "average": (AverageParams, _average),
}


def _run(argv: list[str]) -> None:
    if not argv or argv[0] in ("-h", "--help"):
        print(f"usage: convert_checkpoint.py {{{','.join(COMMANDS)}}} ...\n\n{__doc__}")
        print("convert_checkpoint.py COMMAND --help tells its options.")
        return
    if argv[0] not in COMMANDS:
        raise ValueError(f"{argv[0]}: no such command; choose from {', '.join(COMMANDS)}.{nearest(argv[0], COMMANDS)}")
    topic, work = COMMANDS[argv[0]]
    values, _ = parse_topics((topic,), argv[1:], prog=f"convert_checkpoint.py {argv[0]}", description=topic.__doc__)
    missing = [name for name in ("checkpoint", "checkpoints", "out") if not getattr(values[topic], name, True)]
    problems = [f"--{name}: is needed; see convert_checkpoint.py {argv[0]} --help" for name in missing]
    problems += storage.unwritable("--out", getattr(values[topic], "out", None), folder=topic in (ReshardParams, ExportParams))
    if problems:
        raise UserError(problems)
    work(values[topic])


def main() -> int:
    """Exit status 0, or 2 with the problems on stderr."""
    try:
        _run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
