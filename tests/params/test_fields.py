"""Dataclass fields as flags: layers, types, abbreviations, and every problem in one report."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from open_lm.params.check import MOOT, TOPICS
from open_lm.params.elsewhere import names_elsewhere
from open_lm.params.fields import (
    Problems,
    UserError,
    build_parser,
    convert,
    counted,
    field_docs,
    flag,
    options_of,
    parse_topics,
    suggestion,
)


@dataclass(frozen=True)
class Model:
    """model"""

    model: str = "small"
    """A name."""
    norm: Literal["layer_norm", "rms_norm"] = "layer_norm"
    """Which norm."""
    tied: bool = False
    """Share the embeddings,
    both of them (100 %)."""
    dropout: float | None = None
    """Undocumented range."""


@dataclass(frozen=True)
class Optimizer:
    """optimizer

    More about it.
    """

    lr: float = 5e-4
    """Learning rate."""
    warmup: int = 100
    """Steps."""
    train_data: tuple[str, ...] = ()
    """Shards."""
    weights: tuple[float, ...] = ()
    """Shares."""
    train_num_samples: int | None = flag(None, "--train-num-tokens")
    """Tokens."""
    z_loss_coefficient: float = 0.0
    """z-loss."""
    accum_freq: int = 1
    """Micro-batches."""


def parse(*argv: str, **options: object) -> tuple[Model, Optimizer]:
    topics, warnings = parse_topics((Model, Optimizer), list(argv), **options)
    assert warnings == []
    return topics[Model], topics[Optimizer]


def problems(*argv: str) -> list[str]:
    with pytest.raises(UserError) as error:
        parse(*argv)
    return error.value.problems


@pytest.fixture
def write(tmp_path: Path):
    def _write(name: str, text: str) -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return _write


def test_nothing_given_means_the_defaults() -> None:
    assert parse() == (Model(), Optimizer())


def test_text_becomes_the_fields_type() -> None:
    model, optimizer = parse("--model", "7", "--norm", "rms_norm", "--dropout", "0.1", "--lr", "3e-4", "--warmup", "2e3")
    assert (model.model, model.norm, model.dropout) == ("7", "rms_norm", 0.1)
    assert (optimizer.lr, optimizer.warmup) == (3e-4, 2000)
    assert isinstance(optimizer.warmup, int)


def test_large_whole_numbers_are_exact() -> None:
    assert parse("--train-num-samples", "9007199254740993")[1].train_num_samples == 9007199254740993


def test_none_is_a_value_where_the_field_may_be_absent() -> None:
    assert parse("--dropout", "None")[0].dropout is None
    assert parse("--train-num-samples", "null")[1].train_num_samples is None
    assert problems("--lr", "None") == ["--lr None: give a number"]


def test_an_equals_sign_does_as_well_as_a_space() -> None:
    assert parse("--lr=1e-3", "--norm=rms_norm")[1].lr == 1e-3


def test_booleans_have_a_no() -> None:
    assert parse("--tied")[0].tied is True
    assert parse("--tied", "--no-tied")[0].tied is False


def test_lists_take_several_values_and_repeated_flags_add_up() -> None:
    assert parse("--train-data", "a", "b", "--weights", "1", "2.5")[1].train_data == ("a", "b")
    assert parse("--train-data", "a", "b", "--lr", "1", "--train-data", "c")[1].train_data == ("a", "b", "c")
    assert parse("--weights", "1", "2.5")[1].weights == (1.0, 2.5)


def test_aliases_name_the_same_option(write) -> None:
    assert parse("--train-num-tokens", "5")[1].train_num_samples == 5
    assert parse("--config", write("a.yaml", "train-num-tokens: 6"))[1].train_num_samples == 6


@pytest.mark.parametrize("abbreviation, name", [("--z-loss", "z_loss_coefficient"), ("--accum", "accum_freq"), ("--warm", "warmup")])
def test_unique_prefixes_are_enough(abbreviation: str, name: str) -> None:
    assert getattr(parse(abbreviation, "3")[1], name) == 3


def test_an_ambiguous_prefix_is_an_error_that_names_what_it_could_be() -> None:
    (problem,) = problems("--train-num", "3")
    assert "--train-num-samples" in problem and "--train-num-tokens" in problem


@pytest.mark.parametrize("abbreviation, name, value", [("--z-loss", "z_loss_coefficient", 1e-4), ("--accum", "accum_freq", 2)])
def test_abbreviations_in_the_wild_stay_unambiguous_among_all_options(abbreviation: str, name: str, value: float) -> None:
    topics, _ = parse_topics(TOPICS, [abbreviation, str(value)], moot=MOOT)
    assert getattr(topics[options_of(TOPICS)[name].topic], name) == value


def test_files_lie_under_flags_and_later_files_over_earlier_ones(write) -> None:
    first = write("a.yaml", "lr: 3e-4\nwarmup: 10\nnorm: rms_norm\n")
    second = write("b.json", json.dumps({"warmup": 20, "tied": True, "train_data": ["x", "y"]}))
    model, optimizer = parse("--config", first, "--warmup", "30", "--config", second)
    assert model == Model(norm="rms_norm", tied=True)
    assert optimizer == Optimizer(lr=3e-4, warmup=30, train_data=("x", "y"))
    assert parse("--config", first, "--config", second)[1].warmup == 20
    assert parse("--config", second, "--config", first)[1].warmup == 10


def test_a_flags_list_replaces_the_files(write) -> None:
    assert parse("--config", write("a.yaml", "train_data: [x, y]"), "--train-data", "z")[1].train_data == ("z",)


def test_yaml_numbers_in_any_spelling_are_numbers(write) -> None:
    optimizer = parse("--config", write("a.yaml", "lr: 3e-4\nwarmup: 1e3\nz-loss-coefficient: '1e-4'\nweights: [1e-1, 2]\n"))[1]
    assert (optimizer.lr, optimizer.warmup, optimizer.z_loss_coefficient, optimizer.weights) == (3e-4, 1000, 1e-4, (0.1, 2.0))


def test_file_keys_may_have_dashes_or_underscores_and_null_and_scalars_for_lists(write) -> None:
    optimizer = parse("--config", write("a.yaml", "accum-freq: 4\ntrain_num_samples: null\ntrain-data: one\n"))[1]
    assert optimizer == Optimizer(accum_freq=4, train_data=("one",))


def test_an_empty_yaml_file_is_an_error_that_says_what_it_should_hold(write) -> None:
    (problem,) = problems("--config", write("a.yaml", ""))
    assert "must hold `name: value` pairs" in problem


def test_all_problems_are_reported_together(write) -> None:
    found = problems(
        *("--config", write("a.yaml", "warmup: many\nlerning_rate: 1\n")),
        *("--lr", "fast", "stray", "--norm", "rmsnorm", "--acum", "2", "3"),
    )  # fmt: skip
    text = "\n".join(found)
    assert len(found) == 6
    for part in ("--warmup many: give a whole number", "unknown key lerning_rate", "--lr fast: give a number", "did you mean rms_norm?"):
        assert part in text
    assert "unknown flag --acum. Did you mean --accum-freq?" in text
    assert "stray: an argument without a flag" in text


@pytest.mark.parametrize(
    "arguments, problem",
    [
        (("--warmup", "1.5"), "--warmup 1.5: give a whole number"),
        (("--lr", "nan"), "--lr nan: give a number"),
        (("--lr", "inf"), "--lr inf: give a number"),
        (("--weights", "1", "x"), "--weights x: give a number"),
        (("--norm", "zzz"), "--norm zzz: choose one of layer_norm, rms_norm"),
        (("--unheard-of", "3"), "unknown flag --unheard-of. See --help."),
    ],
)
def test_a_wrong_value_is_one_line_with_flag_value_and_remedy(arguments: tuple[str, ...], problem: str) -> None:
    assert problems(*arguments) == [problem]


@pytest.mark.parametrize(
    "text, problem",
    [
        ("lr: [1, 2]", "--lr [1, 2]: takes one value, not a list"),
        ("tied: 3", "--tied 3: give true or false"),
        ("warmup: true", "--warmup True: give a whole number"),
        ("model: {width: 3}", "--model {'width': 3}: takes one value, not a list"),
        ("lr: null", "--lr: needs a value"),
        ("weights: {a: 1}", "--weights {'a': 1}: give a number"),
    ],
)
def test_a_wrong_value_in_a_file_is_named_like_a_flags(write, text: str, problem: str) -> None:
    assert problems("--config", write("a.yaml", text)) == [problem]


def test_files_that_can_not_be_read_are_named(write, tmp_path: Path) -> None:
    assert "No such file" in problems("--config", str(tmp_path / "absent.yaml"))[0]
    assert "a.yaml: line 1: is not YAML" in problems("--config", write("a.yaml", "a: [1"))[0]
    assert "a.json: line 1: is not JSON" in problems("--config", write("a.json", "{lr: 1}"))[0]
    assert "must hold `name: value` pairs" in problems("--config", write("b.yaml", "- 1\n- 2\n"))[0]


@pytest.mark.parametrize(("name", "text"), [("a.yaml", "lr: 1\nwarmup: 2\nlr: 3\n"), ("a.json", '{"lr": 1,\n "warmup": 2,\n "lr": 3}')])
def test_a_key_given_twice_is_named_with_file_and_line(write, name: str, text: str) -> None:
    path = write(name, text)
    assert problems("--config", path) == [f"--config {path}: line 3: the key 'lr' is given twice, first in line 1; keep one of them"]


def test_text_in_a_file_is_taken_as_it_is_written_and_truth_as_yaml_has_it(write) -> None:
    model, optimizer = parse("--config", write("a.yaml", "\ufefftrain-data: [yes, 007]\nmodel: off\ntied: yes\n"))
    assert (model.model, model.tied, optimizer.train_data) == ("off", True, ("yes", "007"))


def test_a_flag_without_its_value_is_a_user_error() -> None:
    assert "--lr" in problems("--lr")[0]


def test_moot_flags_warn_whatever_their_value_and_are_ignored() -> None:
    moot = {"--torchscript": "use --torchcompile", "--distill-*": "not supported"}
    argv = ["--torchscript", "--distill-model", "big", "--lr", "1", "--distill-pretrained=x"]
    topics, warnings = parse_topics((Model, Optimizer), argv, moot=moot)
    assert topics[Optimizer].lr == 1
    assert warnings == [
        "--torchscript has no effect: use --torchcompile",
        "--distill-model has no effect: not supported",
        "--distill-pretrained has no effect: not supported",
    ]


def test_a_stray_argument_is_not_taken_for_a_moot_flags_value() -> None:
    with pytest.raises(UserError, match="stray: an argument without a flag"):
        parse_topics((Optimizer,), ["--torchscript", "--lr", "1", "stray"], moot={"--torchscript": "use --torchcompile"})


def test_every_flag_that_pytorch_made_moot_is_accepted_in_training() -> None:
    flags = ["--use-bn-sync", "--torchscript", "--trace", "--fsdp-checkpoint", "--use-bnb-linear", "--distill-model", "x"]
    _, warnings = parse_topics(TOPICS, flags, moot=MOOT)
    assert len(warnings) == 6


def flags_of(*topics: type) -> list[str]:
    return [name for option in options_of(topics).values() for name in (option.flag, *option.aliases)]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("--learning-rate", "Did you mean --lr?"),
        ("--lerning_rate", "Did you mean --lr?"),
        ("--max-steps", "Did you mean --train-num-samples? (it counts the tokens of an epoch: "),
        ("--weight_decay", "Did you mean --wd?"),
        ("--gradient-accumulation-steps", "Did you mean --accum-freq?"),
        ("--per_device_train_batch_size", "Did you mean --batch-size? (sequences of a process and step"),
        ("--warmup-iters", "Did you mean --warmup? (steps, or a share such as 2%)"),
        ("--block-size", "seq_len is a key of the model.json"),
        ("--device", "A run takes the GPUs that it sees: torchrun --nproc-per-node N"),
        ("--output_dir", "Did you mean --logs-dir?"),
        ("--sve-frequency", "Did you mean --save-frequency?"),
        ("--zzz", ""),
    ],
)
def test_the_names_of_other_trainers_are_understood(name: str, words: str) -> None:
    found = suggestion(name, flags_of(*TOPICS))
    assert found.strip().startswith(words) and bool(found) == bool(words)


def test_a_suggestion_exists_in_that_very_command(repo: Path) -> None:
    from open_lm.evaluation.command import TOPICS as EVALUATION
    from open_lm.tokens.options import InputOptions, OutputOptions, RunOptions, TokenizerOptions

    generate = re.findall(r"^    (\w+): ", (repo / "scripts/generate.py").read_text(), re.MULTILINE)
    commands = [
        flags_of(*TOPICS),
        flags_of(*EVALUATION),
        flags_of(InputOptions, TokenizerOptions, OutputOptions, RunOptions),
        [f"--{n.replace('_', '-')}" for n in generate],
    ]
    for flags in commands:
        said = {name: suggestion(name, flags) for name in (*names_elsewhere(), "device", "seed", "nnodes")}
        found = {name: m[1] for name, words in said.items() if (m := re.match(r" Did you mean (\S+)\?", words))}
        assert set(found.values()) <= set(flags)
        assert len(found) > 15
        assert "--load-pretrained-state" not in found.values()
    assert "Scores depend on no seed" in suggestion("--seed", flags_of(*EVALUATION))
    assert suggestion("--max-length", commands[3]) == " Did you mean --max-new-tokens?"
    assert suggestion("n_embd", ["hidden_dim", "n_heads"]) == " Did you mean hidden_dim?"


@pytest.mark.parametrize("text", ["2.5%", "0%", "100%", "300", 300])
def test_steps_may_be_a_share_of_the_run(text: str | int) -> None:
    assert convert(options_of(TOPICS)["warmup"], text) == (300 if str(text) == "300" else text)


@pytest.mark.parametrize("text", ["101%", "-1%", "%", "0.02", "2 percent"])
def test_what_is_neither_steps_nor_a_share_is_told(text: str) -> None:
    with pytest.raises(ValueError, match=f"--warmup {text}: give a whole number, or a share from 0% to 100%"):
        convert(options_of(TOPICS)["warmup"], text)


def test_docstrings_under_fields_are_the_help() -> None:
    assert field_docs(Model)["tied"] == "Share the embeddings, both of them (100 %)."
    text = build_parser((Model, Optimizer)).format_help()
    assert "Share the embeddings, both of them (100 %)." in " ".join(text.split())
    assert "optimizer:" in text and "More about it" not in text
    assert "{layer_norm,rms_norm}" in text and "--train-num-tokens" in text


def test_every_training_option_is_documented() -> None:
    assert [name for name, option in options_of(TOPICS).items() if not option.help] == []


def test_two_topics_can_not_own_one_name() -> None:
    @dataclass(frozen=True)
    class Other:
        lr: int = 1

    with pytest.raises(AssertionError, match="two topics own lr"):
        options_of((Optimizer, Other))


def test_convert_takes_values_as_they_are() -> None:
    options = options_of((Model, Optimizer))
    assert convert(options["weights"], (1, "2")) == (1.0, 2.0)
    assert convert(options["tied"], "True") is True
    assert convert(options["model"], 3) == "3"


def test_problems_of_several_steps_are_gathered() -> None:
    def fail(error: Exception) -> None:
        raise error

    gathered = Problems()
    gathered.raise_any()
    assert gathered.attempt(len, "abc") == 3
    assert gathered.attempt(fail, UserError(["one", "two"])) is None
    assert gathered.attempt(fail, ValueError("three")) is None
    with pytest.raises(KeyError):
        gathered.attempt(fail, KeyError("a bug"))
    with pytest.raises(UserError) as error:
        gathered.raise_any()
    assert error.value.problems == ["one", "two", "three"] and str(error.value) == "one\ntwo\nthree"


def test_numbers_are_followed_by_their_words() -> None:
    told = [counted(1, "process"), counted(2, "process"), counted(0, "row"), counted(1234, "batch"), counted(3, "epoch")]
    assert told == ["1 process", "2 processes", "0 rows", "1,234 batches", "3 epochs"]


def test_a_problem_that_two_steps_find_is_told_once() -> None:
    gathered = Problems()
    gathered.found += ["--a: wrong", "--b: wrong", "--a: wrong"]
    with pytest.raises(UserError) as error:
        gathered.raise_any()
    assert error.value.problems == ["--a: wrong", "--b: wrong"]
