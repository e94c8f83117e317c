"""Contradictions, values out of range and features that are not built yet are told before anything starts, all at once."""

from __future__ import annotations

import re

import pytest

from open_lm.params import UserError, parse_params
from open_lm.params.check import MOOT, TOPICS
from open_lm.params.fields import build_parser, options_of

OPENLM_FLAGS = """train-data train-data-mix-weights train-data-upsampling-factors val-data val-data-key data-key train-num-samples
train-num-tokens val-num-samples dataset-type dataset-resampled dataset-manifest dataset-metadata disable-buffer workers
multiple-data-passes ignore-parse-errors data-tolerate-error-p data-tolerate-num-ckpts target-mask-left squash-mask-left
target-mask-individual seed batch-size global-batch-size accum-freq epochs data-streams shuffle-window lr beta1 beta2 eps wd warmup
lr-scheduler lr-cooldown-end lr-cooldown-power epochs-cooldown force-min-lr skip-scheduler grad-clip-norm z-loss-coefficient
log-logit-mean model model-config model-norm ffn-type qk-norm positional-embedding-type attn-name pretrained load-pretrained-state
average average-coefficients averagers log-avg-model-training-loss hf-model hf-seq-len hf-fsdp-block precision grad-checkpointing
torchcompile fsdp fsdp-amp fsdp-pure-bf16 fsdp-hybrid fsdp-hybrid-o2 fsdp-cpu-offload fsdp-use-orig-params fsdp-backward-prefetch
fsdp-limit-all-gathers ddp-static-graph dist-url dist-backend no-set-device-rank force-distributed preset-world-size
experimental-meta-device resume save-frequency save-most-recent delete-previous-checkpoint remote-sync remote-sync-frequency
remote-sync-protocol logs log-local name report-to wandb-notes wandb-project-name log-every-n-steps debug copy-codebase val-frequency
global-val-batch-size val-seq-ci val-tok-ci val-max-pop-ci val-iter-ci"""

UNBUILT = [o.name for o in options_of(TOPICS).values() if isinstance(o.unbuilt, str) and o.unbuilt]
UNBUILT_CHOICES = [(o.name, choice) for o in options_of(TOPICS).values() if not isinstance(o.unbuilt, str) for choice in o.unbuilt]


def problems_of(*flags: str) -> list[str]:
    with pytest.raises(UserError) as caught:
        parse_params(["--train-data", "x.tar", *flags])
    return caught.value.problems


def test_every_flag_of_openlm_is_known() -> None:
    known = {n for o in options_of(TOPICS).values() for n in (o.flag, *o.aliases)} | set(MOOT)
    assert [f for f in OPENLM_FLAGS.split() if f"--{f}" not in known] == []


def test_every_option_says_what_it_does() -> None:
    assert [o.name for o in options_of(TOPICS).values() if not o.help] == []


def test_the_defaults_are_the_documented_ones() -> None:
    params, warnings = parse_params(["--train-data", "x.tar"])
    values = params.flat()
    expected = {"lr": 5e-4, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "wd": 0.2, "warmup": None, "epochs": 32, "seed": 0, "accum_freq": 1}
    assert {name: values[name] for name in expected} == expected
    assert values["precision"] == "amp_bfloat16"
    assert values["data_tolerate_error_p"] == 0
    assert warnings == []


@pytest.mark.parametrize("name", UNBUILT)
def test_a_feature_that_is_not_built_stops_with_one_line(name: str) -> None:
    option = options_of(TOPICS)[name]
    value = [] if option.kind is bool else ["1"]
    found = problems_of(option.flag, *value)
    assert any(problem.startswith(option.flag) for problem in found)


@pytest.mark.parametrize(("name", "value"), UNBUILT_CHOICES)
def test_a_choice_that_is_not_built_stops_with_one_line(name: str, value: str) -> None:
    assert problems_of(options_of(TOPICS)[name].flag, value)[0].startswith(f"{options_of(TOPICS)[name].flag} {value}: ")


def test_help_offers_nothing_that_is_refused() -> None:
    assert len(UNBUILT) >= 7 and len(UNBUILT_CHOICES) >= 4
    text = build_parser(TOPICS).format_help()
    assert [name for name in UNBUILT if f"{options_of(TOPICS)[name].flag} " in text or f"{options_of(TOPICS)[name].flag}," in text] == []
    assert [choice for _, choice in UNBUILT_CHOICES if re.search(rf"[{{,]{choice}[,}}]", text)] == []
    assert "not built" not in text
    assert problems_of("--precision", "fp17") == ["--precision fp17: choose one of amp_bf16, amp_bfloat16, bf16, fp32"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--dataset-manifest m.jsonl", "--train-data and --dataset-manifest: give one of them"),
        ("--dataset-type synthetic --train-num-samples 99", "reads no files"),
        ("--dataset-resampled", "--train-num-samples: needed"),
        ("--train-data-upsampling-factors 2", "only for --dataset-resampled"),
        ("--precision fp32 --fsdp --fsdp-amp", "--precision fp32 with --fsdp-amp"),
        ("--fsdp-amp", "--fsdp-amp: only with --fsdp"),
        ("--lr-scheduler const-cooldown", "needs --epochs-cooldown"),
        ("--epochs-cooldown 3", "only with --lr-scheduler const-cooldown"),
        ("--report-to mlflow", "--report-to mlflow: choose from tensorboard, wandb, all"),
        ("--epochs 0", "--epochs 0: give 1 or more"),
        ("--lr 0", "--lr 0.0: give a number above 0"),
        ("--grad-clip-norm 0", "--grad-clip-norm 0.0"),
        ("--beta2 1", "--beta2 1.0"),
        ("--workers -1", "--workers -1: give 0 or more"),
        ("--warmup -1", "--warmup -1: give 0 or more"),
        ("--squash-mask-left", "--squash-mask-left: needs --target-mask-left"),
        ("--target-mask-left 3 --target-mask-individual 3", "--target-mask-left and --target-mask-individual 3: give two ids"),
        ("--val-max-pop-ci 9", "--val-max-pop-ci 9: only with --val-seq-ci or --val-tok-ci"),
        ("--val-seq-ci", "--val-seq-ci: needs --val-data"),
        ("--val-data v.tar --val-tok-ci --val-iter-ci 0", "--val-iter-ci 0: give 1 or more"),
        ("--deterministic --torchcompile", "--deterministic with --torchcompile: compiled kernels are chosen by their measured time"),
        (
            "--deterministic --attn-name xformers_attn",
            "--deterministic with --attn-name xformers_attn: its backward pass is not deterministic",
        ),
        ("--document-mask --attn-name xformers_attn", "--document-mask with --attn-name xformers_attn"),
    ],
)
def test_contradictions_and_wrong_values_are_told(flags: str, words: str) -> None:
    found = problems_of(*flags.split())
    assert len(found) == 1
    assert words in found[0]


def test_all_of_them_at_once() -> None:
    assert len(problems_of("--epochs", "0", "--lr", "0", "--averagers", "ema_1_1", "--epochs-cooldown", "3")) == 4


def test_moot_flags_warn_and_say_what_to_use() -> None:
    params, warnings = parse_params(["--train-data", "x.tar", "--torchscript", "--distill-model", "m", "--lr", "1"])
    assert params.optimizer.lr == 1
    assert warnings == [
        "--torchscript has no effect: use --torchcompile",
        "--distill-model has no effect: distillation is not part of this project; --pretrained starts from a checkpoint",
    ]


def test_the_abbreviations_in_use_stay_unambiguous() -> None:
    params, _ = parse_params(["--train-data", "x.tar", "--z-loss", "1e-4", "--accum", "2"])
    assert params.optimizer.z_loss_coefficient == 1e-4
    assert params.batch.accum_freq == 2
