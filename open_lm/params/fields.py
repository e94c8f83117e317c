"""One declaration per option: a dataclass field with a type, a default and a docstring.

Owns the way from such dataclasses to command-line flags and back: flag names, abbreviations, conversion of text and YAML
values to the field's type, and a report of every problem at once. Knows no option of any program; `elsewhere` has the names of others'.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import difflib
import functools
import inspect
import json
import math
import operator
import re
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from open_lm.params.elsewhere import meant, names_elsewhere

T = TypeVar("T")
Steps = int | str
"""A number of steps, or a share of the run's as text: `2%`."""


class UserError(ValueError):
    """Something the user can mend: one line for each problem, naming flag, value and remedy."""

    def __init__(self, problems: Iterable[str]):
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))


def counted(number: int, what: str) -> str:
    """A number and what it counts, such as 1 process, 2 processes."""
    return f"{number:,} {what}" + ("" if number == 1 else "es" if what.endswith(("s", "x", "tch", "sh")) else "s")


class Problems:
    """Gathers the problems of several steps, so that the user sees all of them at once."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def attempt(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T | None:
        """The function's result, or None where it raised a ValueError, which is kept."""
        try:
            return function(*args, **kwargs)
        except UserError as error:
            self.found += error.problems
        except ValueError as error:
            self.found.append(str(error))
        return None

    def raise_any(self) -> None:
        """Raises UserError with every problem found, if there is one."""
        if self.found:
            raise UserError(list(dict.fromkeys(self.found)))


def flag(default: Any, *aliases: str, mapping: bool = False, unbuilt: str | Mapping[str, str] = "", hidden: bool = False) -> Any:
    """A dataclass field with further flag names, e.g. `flag(None, "--train-num-tokens")`.

    Args:
        mapping: a file may give `name: value` pairs in the place of text; the field then holds them as JSON.
        unbuilt: what is said of any value but the default, whose feature isn't built yet, or of some choices; --help shows none of them.
        hidden: --help doesn't show it.
    """
    about = {"aliases": aliases, "mapping": mapping, "unbuilt": unbuilt, "hidden": hidden or (isinstance(unbuilt, str) and bool(unbuilt))}
    return dataclasses.field(default=default, metadata=about)


@dataclasses.dataclass(frozen=True)
class Option:
    """One field of a topic as the command line sees it."""

    name: str
    topic: type
    kind: Any
    default: Any
    help: str
    aliases: tuple[str, ...]
    mapping: bool = False
    unbuilt: str | Mapping[str, str] = ""
    hidden: bool = False

    def problem(self, value: Any) -> str | None:
        """What is said of a value whose feature isn't built yet; None where it is."""
        words = self.unbuilt if isinstance(self.unbuilt, str) else self.unbuilt.get(str(value))
        return f"{self.flag} {value}: {words}" if words and value != self.default else None

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    def choices(self, kind: Any) -> tuple[str, ...]:
        """Of a Literal, those that are built; none of another type."""
        return tuple(c for c in typing.get_args(kind) if c not in self.unbuilt) if typing.get_origin(kind) is Literal else ()

    @property
    def is_list(self) -> bool:
        return typing.get_origin(self.kind) is tuple

    @property
    def is_text(self) -> bool:
        """Whether its value, or each of its list, is text."""
        kind, _ = _without_none(self.kind)
        item = typing.get_args(kind)[0] if typing.get_origin(kind) is tuple else kind
        return item is str or typing.get_origin(item) is Literal


@functools.cache
def field_docs(topic: type) -> dict[str, str]:
    """The string literal under each field of a dataclass, by field name; those of its bases first."""
    docs: dict[str, str] = {}
    for base in topic.__bases__:
        docs |= field_docs(base) if dataclasses.is_dataclass(base) else {}
    tree = ast.parse(textwrap.dedent(inspect.getsource(topic))).body[0]
    assert isinstance(tree, ast.ClassDef)
    for statement, following in zip(tree.body, tree.body[1:], strict=False):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            docs[statement.target.id] = " ".join(str(following.value.value).split())
    return docs


@functools.cache
def options_of(topics: tuple[type, ...]) -> dict[str, Option]:
    """All options of some topics by field name; names must be unique over the topics."""
    options: dict[str, Option] = {}
    for topic in topics:
        hints, docs = typing.get_type_hints(topic), field_docs(topic)
        for field in dataclasses.fields(topic):
            assert field.name not in options, f"two topics own {field.name}"
            options[field.name] = Option(
                field.name,
                topic,
                hints[field.name],
                field.default,
                docs.get(field.name, ""),
                field.metadata.get("aliases", ()),
                *(field.metadata[name] for name in ("mapping", "unbuilt", "hidden") if field.metadata),
            )
    return options


def _without_none(kind: Any) -> tuple[Any, bool]:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        rest = [k for k in typing.get_args(kind) if k is not type(None)]
        return functools.reduce(operator.or_, rest), len(rest) < len(typing.get_args(kind))
    return kind, False


def convert(option: Option, value: Any) -> Any:
    """`value` (text of a flag, or a value of a YAML/JSON file) as the option's type. Raises ValueError with the remedy."""
    kind, optional = _without_none(option.kind)
    if value is None or (optional and isinstance(value, str) and value.lower() in ("none", "null")):
        if optional:
            return None
        raise ValueError(f"{option.flag}: needs a value")
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        values = value if isinstance(value, (list, tuple)) else [value]
        return tuple(_convert_one(option, item, v) for v in values)
    if option.mapping and isinstance(value, dict):
        return json.dumps(value)
    if isinstance(value, (list, tuple, dict)):
        raise ValueError(f"{option.flag} {value!r}: takes one value, not a list")
    return _convert_one(option, kind, value)


def _convert_one(option: Option, kind: Any, value: Any) -> Any:
    if typing.get_origin(kind) is Literal:
        if str(value) in typing.get_args(kind):
            return str(value)
        choices = option.choices(kind)
        near = difflib.get_close_matches(str(value), choices, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"{option.flag} {value}: {hint}choose one of {', '.join(choices)}")
    if kind is bool:
        if isinstance(value, bool):
            return value
        if str(value).lower() in ("true", "false"):
            return str(value).lower() == "true"
        raise ValueError(f"{option.flag} {value}: give true or false")
    if kind is str:
        return str(value)
    steps = kind == Steps
    if steps:
        if re.fullmatch(r"(\d+(\.\d*)?|\.\d+)%", str(value)) and float(str(value)[:-1]) <= 100:
            return str(value)
        kind = int
    try:
        number = float(value)
        if isinstance(value, bool) or not math.isfinite(number):
            raise ValueError
        if kind is float:
            return number
        if number != int(number):
            raise ValueError
        return int(str(value)) if str(value).lstrip("+-").isdigit() else int(number)
    except (TypeError, ValueError):
        what = ("a whole number" if kind is int else "a number") + (", or a share from 0% to 100%" if steps else "")
        raise ValueError(f"{option.flag} {value}: give {what}") from None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        raise UserError([message])


def build_parser(topics: tuple[type, ...], **about: Any) -> argparse.ArgumentParser:
    """A parser with one group per topic. It takes text only; `convert` gives it types, so that all problems are seen at once."""
    parser = _Parser(argument_default=argparse.SUPPRESS, formatter_class=argparse.RawDescriptionHelpFormatter, **about)
    groups: dict[type, Any] = {}
    for option in options_of(topics).values():
        if option.topic not in groups:
            groups[option.topic] = parser.add_argument_group(inspect.cleandoc(option.topic.__doc__ or "").split("\n")[0])
        kind, _ = _without_none(option.kind)
        text = argparse.SUPPRESS if option.hidden else f"{option.help} (default: {_shown(option.default)})".replace("%", "%%")
        names = (option.flag, *option.aliases)
        if kind is bool:
            add: dict[str, Any] = {"action": argparse.BooleanOptionalAction, "help": text}
        else:
            item = typing.get_args(kind)[0] if option.is_list else kind
            choices = option.choices(item)
            metavar = "{" + ",".join(choices) + "}" if choices else "STEPS" if item == Steps else item.__name__.upper()
            add = {"metavar": metavar, "help": text}
            if option.is_list:
                add |= {"nargs": "+", "action": "extend"}
        groups[option.topic].add_argument(*names, dest=option.name, **add)
    return parser


def _shown(default: Any) -> str:
    return "none" if default in (None, ()) else str(default)


def nearest(name: str, names: Iterable[str]) -> str:
    """`did you mean X?` for an unknown name, or nothing when none is near."""
    near = difflib.get_close_matches(name, list(names), 1)
    return f" Did you mean {near[0]}?" if near else ""


def suggestion(name: str, names: Iterable[str]) -> str:
    """What to type in the place of an unknown flag or key, of all that there are: by what other trainers call it, else by likeness."""
    known, asked = {_plain(n): n for n in names}, _plain(name)

    def likeness(other: str) -> float:
        return max(difflib.SequenceMatcher(None, asked, part).ratio() for part in (other, other[: len(asked) + 1]))

    if words := meant(asked, known):
        return words
    theirs = [one for one, ours in names_elsewhere().items() if any(n in known for n in ours)]
    near = max((*known, *theirs), key=likeness)
    if likeness(near) < 0.75:
        return ""
    return f" Did you mean {known[near]}?" if near in known else meant(near, known)


def _plain(name: str) -> str:
    return name.lstrip("-").replace("-", "_").lower()


def _read_config(path: str, texts: Collection[str]) -> Mapping[str, Any]:
    from open_lm.storage.yaml_json import read_json, read_yaml

    try:
        data = Path(path).read_bytes()
        values = read_json(data) if path.endswith(".json") else read_yaml(data, texts)
    except OSError as error:
        raise ValueError(f"--config {path}: {error.strerror}; give a YAML or JSON file") from None
    except ValueError as error:
        raise ValueError(f"--config {path}: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"--config {path}: must hold `name: value` pairs")
    return values


def _named_in_file(path: str, options: Mapping[str, Option]) -> tuple[dict[str, Any], list[str]]:
    """A file's values by option name, and its unknown keys as problems."""
    by_name = {n[2:].replace("-", "_"): o.name for o in options.values() for n in (o.flag, *o.aliases)}
    texts = [name for name, option in by_name.items() if options[option].is_text]
    shown = [name for name, option in by_name.items() if not options[option].hidden]
    values, problems = {}, []
    try:
        for key, value in _read_config(path, texts).items():
            name = by_name.get(str(key).replace("-", "_"))
            if name is None:
                problems.append(f"--config {path}: unknown key {key}.{suggestion(str(key), shown) or ' See --help.'}")
            else:
                values[name] = value
    except ValueError as error:
        problems.append(str(error))
    return values, problems


def parse_topics(
    topics: tuple[type, ...],
    argv: Sequence[str] | None = None,
    *,
    moot: Mapping[str, str] | None = None,
    absent: Mapping[str, str] | None = None,
    **about: Any,
) -> tuple[dict[type, Any], list[str]]:
    """Flags over config files over defaults.

    Args:
        topics: frozen dataclasses whose fields are the options.
        argv: the command line without the program's name; default `sys.argv[1:]`.
        moot: flags that are accepted and ignored, each with what to use instead; `--x-*` stands for every flag so named.
        absent: flags that name what isn't built, each with the remedy; they are problems.
        about: `prog`, `description`, `epilog` of the help text.

    Returns:
        One instance per topic, and the warnings about moot flags.

    Raises:
        UserError: with every problem found.
    """
    options = options_of(topics)
    raw, warnings, problems = _gather(topics, argv, moot or {}, absent or {}, about)
    converted: dict[type, dict[str, Any]] = {topic: {} for topic in topics}
    for name, value in raw.items():
        try:
            converted[options[name].topic][name] = convert(options[name], value)
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise UserError(problems)
    return {topic: topic(**values) for topic, values in converted.items()}, warnings


def given_options(topics: tuple[type, ...], argv: Sequence[str] | None = None) -> frozenset[str]:
    """Names of the options that flags or config files give a value, be it the default."""
    return frozenset(_gather(topics, argv, {}, {}, {})[0])


def _gather(
    topics: tuple[type, ...],
    argv: Sequence[str] | None,
    moot: Mapping[str, str],
    absent: Mapping[str, str],
    about: Mapping[str, Any],
) -> tuple[dict[str, Any], list[str], list[str]]:
    """What is given by option name, not yet converted; warnings; problems."""
    argv = list(sys.argv[1:] if argv is None else argv)
    options = options_of(topics)
    parser = build_parser(topics, **about)
    parser.add_argument(
        "--config", action="append", default=[], metavar="FILE", help="YAML or JSON file of options; later files and flags win"
    )
    given, unknown = parser.parse_known_args(argv)
    shown = [name for name, action in parser._option_string_actions.items() if action.help != argparse.SUPPRESS]
    warnings, problems = _sort_unknown(argv, unknown, moot, absent, shown)
    raw: dict[str, Any] = {}
    for path in given.config:
        values, wrong = _named_in_file(path, options)
        raw.update(values)
        problems += wrong
    raw.update({name: value for name, value in vars(given).items() if name != "config"})
    return raw, warnings, problems


def _sort_unknown(
    argv: Sequence[str], unknown: Sequence[str], moot: Mapping[str, str], absent: Mapping[str, str], known: Sequence[str]
) -> tuple[list[str], list[str]]:
    """The arguments that argparse didn't take (in the order of `argv`) as warnings (moot flags) and problems.

    What directly follows a moot or unknown flag is its value, and not named again.
    """
    warnings, problems = [], []
    place, value_at = 0, -1
    for token in unknown:
        place = next((i + 1 for i in range(place, len(argv)) if argv[i] == token), place)
        if not token.startswith("--"):
            if place != value_at:
                problems.append(f"{token}: an argument without a flag; see --help")
                continue
        else:
            name = token.split("=")[0]
            instead, remedy = _listed(name, moot), _listed(name, absent)
            if remedy is not None:
                problems.append(f"{name}: {remedy}")
            elif instead is None:
                problems.append(f"unknown flag {name}.{suggestion(name, known) or ' See --help.'}")
            else:
                warnings.append(f"{name} has no effect: {instead}")
        value_at = place + 1
    return warnings, problems


def _listed(name: str, flags: Mapping[str, str]) -> str | None:
    """The text of a flag among flags of which some end in `*`."""
    return next((text for flag, text in flags.items() if name == flag or (flag.endswith("*") and name.startswith(flag[:-1]))), None)
