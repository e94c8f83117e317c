"""What no single option can tell: contradictions between options, and options whose feature does not exist yet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from open_lm.params.averagers import parse_averagers
from open_lm.params.data import BatchParams, DataParams, ValidationParams
from open_lm.params.ending import EndingParams, seconds_of
from open_lm.params.fields import options_of
from open_lm.params.run import CheckpointParams, LogParams
from open_lm.params.training import AveragingParams, ModelParams, OptimizerParams, ParallelParams

TOPICS = (
    DataParams,
    ValidationParams,
    BatchParams,
    ModelParams,
    OptimizerParams,
    AveragingParams,
    ParallelParams,
    CheckpointParams,
    LogParams,
    EndingParams,
)

MOOT = {
    "--use-bn-sync": "the models have no batch norm",
    "--torchscript": "use --torchcompile",
    "--trace": "use --torchcompile",
    "--fsdp-checkpoint": "use --grad-checkpointing",
    "--use-bnb-linear": "use --precision amp_bfloat16",
    "--data-tolerate-num-ckpts": "--data-tolerate-error-p is a share of the whole run, over every resume",
    "--distill-*": "distillation is not part of this project; --pretrained starts from a checkpoint",
}
"""Flags of OpenLM that are accepted and ignored, with what to use instead."""

ABSENT = {
    "--moe-*": "mixture of experts is not part of this project; leave the flag out",
    "--attn-activation": "custom attention is not built; leave the flag out",
    "--attn-seq-scalar*": "custom attention is not built; leave the flag out",
}
"""Flags of OpenLM that change the model in a way that isn't built."""

_AT_LEAST_ONE = (
    *("batch_size", "global_batch_size", "accum_freq", "epochs", "train_num_samples", "val_num_samples"),
    *("data_streams", "shuffle_window", "log_every_n_steps", "val_frequency", "global_val_batch_size"),
    *("remote_sync_frequency", "val_max_pop_ci", "val_iter_ci", "eval_tasks_frequency"),
)
_AT_LEAST_ZERO = (
    *("workers", "seed", "warmup", "save_frequency", "save_every_steps"),
    *("save_every_minutes", "keep_last", "keep_every", "log_avg_model_training_loss"),
    *("wd", "z_loss_coefficient", "force_min_lr", "lr_cooldown_end"),
    *("max_nonfinite_steps", "watchdog_minutes"),
)


def find_problems(topics: dict[type, object]) -> Iterator[str]:
    """Every contradiction and every feature that is not built yet, one line each."""
    values = {name: getattr(topics[option.topic], name) for name, option in options_of(TOPICS).items()}
    for name, option in options_of(TOPICS).items():
        if problem := option.problem(values[name]):
            yield problem
    yield from _contradictions(values)
    yield from _out_of_range(values)


def _contradictions(v: dict[str, object]) -> Iterator[str]:
    synthetic = v["dataset_type"] == "synthetic"
    sources = [name for name in ("train_data", "dataset_manifest") if v[name]]
    if not synthetic and not sources and not validates_only(v):
        yield "--train-data: nothing to train on; give shards, --dataset-manifest, --dataset-type synthetic, or --val-data to validate only"
    if validates_only(v):
        yield from _validation_only(v)
    yield from _two_namings(v)
    if "://" in str(v["logs"]) and not str(v["logs"]).startswith("file://"):
        yield f"--logs-dir {v['logs']}: must be a local folder; --remote-sync copies a run elsewhere"
    if synthetic and sources:
        yield "--dataset-type synthetic: reads no files; leave --train-data and --dataset-manifest out"
    if v["dataset_manifest"] and v["dataset_resampled"] and not v["train_data"]:
        yield "--dataset-manifest: is read without replacement; leave --dataset-resampled out, or give the shards by --train-data"
    if (v["dataset_resampled"] or synthetic) and v["train_num_samples"] is None and (sources or synthetic):
        yield "--train-num-samples: needed with --dataset-resampled or synthetic data, which have no end of their own"
    if v["new_data_plan"] and v["resume"] is None and not v["load_pretrained_state"]:
        yield "--new-data-plan: only with --resume; a new run has no other plan"
    yield from _starts(v)
    if v["train_data_upsampling_factors"] and not v["dataset_resampled"]:
        yield "--train-data-upsampling-factors: only for --dataset-resampled"
    yield from _mask_contradictions(v)
    yield from _averagers(v)
    if v["ignore_parse_errors"] and not v["data_tolerate_error_p"]:
        yield "--ignore-parse-errors: give the share of rows that may be lost by --data-tolerate-error-p"
    yield from _not_deterministic(v)
    if v["precision"] == "fp32" and v["fsdp_amp"]:
        yield "--precision fp32 with --fsdp-amp: contradict each other; use --precision amp_bfloat16, or leave --fsdp-amp out"
    if v["delete_previous_checkpoint"] and v["keep_last"] not in (0, 1):
        yield f"--delete-previous-checkpoint with --keep-last {v['keep_last']}: contradict each other; leave one out"
    if str(v["checkpoint_dir"] or "").startswith(("http://", "https://")):
        yield f"--checkpoint-dir {v['checkpoint_dir']}: a web server can't be written to; give a folder or s3://bucket/path"
    if v["keep_every"] and not (v["keep_last"] or v["delete_previous_checkpoint"]):
        yield f"--keep-every {v['keep_every']}: all run states are kept; give --keep-last too, or leave it out"
    for name in ("fsdp_amp", "fsdp_pure_bf16", "fsdp_cpu_offload"):
        if v[name] and not v["fsdp"]:
            yield f"--{name.replace('_', '-')}: only with --fsdp"
    if v["lr_scheduler"] == "const-cooldown" and v["epochs_cooldown"] is None:
        yield "--lr-scheduler const-cooldown: needs --epochs-cooldown"
    if v["epochs_cooldown"] is not None and v["lr_scheduler"] != "const-cooldown":
        yield "--epochs-cooldown: only with --lr-scheduler const-cooldown"
    if v["log_avg_model_training_loss"] and not v["averagers"]:
        yield "--log-avg-model-training-loss: only with --averagers"
    if v["val_data_key"] and len(v["val_data_key"]) != len(v["val_data"]):  # type: ignore[arg-type]
        yield f"--val-data-key: give one for each of the {len(v['val_data'])} --val-data"  # type: ignore[arg-type]
    yield from _intervals(v)
    if str(v["remote_sync"]).startswith(("http://", "https://")):
        yield f"--remote-sync {v['remote_sync']}: a web server can't be written to; give s3://bucket/path or a folder"
    if v["peak_tflops"] is not None and v["peak_tflops"] <= 0:  # type: ignore[operator]
        yield f"--peak-tflops {v['peak_tflops']}: give a number above 0"
    unknown = {r for item in v["report_to"] for r in item.split(",")} - {"", "tensorboard", "wandb", "all"}  # type: ignore[attr-defined]
    if unknown:
        yield f"--report-to {','.join(sorted(unknown))}: choose from tensorboard, wandb, all"


def validates_only(v: Mapping[str, object]) -> bool:
    """Whether options, by name, mean a run that trains nothing: validation data, or tasks and weights, and no data to train on."""
    weights = v["resume"] or v["pretrained"] or v["average"]
    asked = bool(v["val_data"]) or bool(v["eval_tasks"] and weights)
    return asked and v["dataset_type"] != "synthetic" and not v["train_data"] and not v["dataset_manifest"]


def _validation_only(v: dict[str, object]) -> Iterator[str]:
    """A run without training validates one checkpoint."""
    given = [flag for flag, name in (("--resume", "resume"), ("--pretrained", "pretrained"), ("--average", "average")) if v[name]]
    if not given:
        yield "--val-data without training data: validates a checkpoint; give --resume, --pretrained or --average, or --train-data"
    elif len(given) > 1:
        yield f"{' and '.join(given)}: without training data one checkpoint is validated; give one of them"
    for name in ("load_pretrained_state", "reset_trainer_state", "dry_run", "averagers", "remote_sync"):
        if v[name]:
            yield f"--{name.replace('_', '-')}: there is nothing to train; leave it out, or give --train-data"
    if v["resume"] == "latest" and v["name"] is None:
        yield "--resume latest without training data: validates the newest checkpoint of a run; give its --name"


def _not_deterministic(v: dict[str, object]) -> Iterator[str]:
    """What does not give the same bits twice."""
    if v["deterministic"] and v["torchcompile"]:
        yield "--deterministic with --torchcompile: compiled kernels are chosen by their measured time; leave one out"
    if v["deterministic"] and v["attn_name"] == "xformers_attn":
        yield "--deterministic with --attn-name xformers_attn: its backward pass is not deterministic; use --attn-name auto"


def _intervals(v: dict[str, object]) -> Iterator[str]:
    """What bounds nothing."""
    if v["val_max_pop_ci"] is not None and not (v["val_seq_ci"] or v["val_tok_ci"]):
        yield f"--val-max-pop-ci {v['val_max_pop_ci']}: only with --val-seq-ci or --val-tok-ci"
    for name in ("val_seq_ci", "val_tok_ci"):
        if v[name] and not v["val_data"]:
            yield f"--{name.replace('_', '-')}: needs --val-data"
    if v["eval_tasks_frequency"] != 1 and not v["eval_tasks"]:
        yield f"--eval-tasks-frequency {v['eval_tasks_frequency']}: only with --eval-tasks"


def _averagers(v: dict[str, object]) -> Iterator[str]:
    try:
        parse_averagers(v["averagers"])  # type: ignore[arg-type]
    except ValueError as error:
        yield str(error)


def _starts(v: dict[str, object]) -> Iterator[str]:
    """What a run may begin with."""
    average, coefficients = v["average"], v["average_coefficients"]
    assert isinstance(average, tuple) and isinstance(coefficients, tuple)
    if v["load_pretrained_state"] and v["pretrained"] is None:
        yield "--load-pretrained-state: needs --pretrained, whose state it takes"
    if v["reset_trainer_state"] and v["resume"] in (None, "latest") and not v["load_pretrained_state"]:
        shown = "--resume latest" if v["resume"] else "no --resume"
        yield f"--reset-trainer-state with {shown}: give --resume PATH, or --pretrained PATH --load-pretrained-state"
    if average and v["pretrained"]:
        yield "--average and --pretrained: give one of them; --average starts from the average of its checkpoints"
    if coefficients and len(coefficients) != len(average):
        yield f"--average-coefficients: {len(coefficients)} given for {len(average)} checkpoints of --average; give one each, or none"


def _mask_contradictions(v: dict[str, object]) -> Iterator[str]:
    left, individual = v["target_mask_left"], v["target_mask_individual"]
    if v["squash_mask_left"] and left is None:
        yield "--squash-mask-left: needs --target-mask-left, whose token it takes out of the rows"
    if left is not None and left == individual:
        yield f"--target-mask-left and --target-mask-individual {left}: give two ids, or leave one out"
    if v["document_mask"] and v["dataset_type"] == "synthetic":
        yield "--document-mask: synthetic tokens have no end of text; leave it out"
    if v["document_mask"] and v["attn_name"] == "xformers_attn":
        yield "--document-mask with --attn-name xformers_attn: not built; use --attn-name auto"


def _two_namings(v: dict[str, object]) -> Iterator[str]:
    """A manifest beside --train-data tells the counts of shards that lie elsewhere."""
    names, manifests = v["train_data"], v["dataset_manifest"]
    assert isinstance(names, tuple) and isinstance(manifests, tuple)
    if not names or not manifests:
        return
    if not any("://" in name or "pipe:" in name for name in names):
        yield "--train-data and --dataset-manifest: give one of them"
    elif len(names) != len(manifests):
        yield f"--dataset-manifest: {len(manifests)} manifests for {len(names)} --train-data; give one each, or none"


def _endings(v: dict[str, object]) -> Iterator[str]:
    limit, spikes, cooldown = v["time_limit"], v["skip_spikes"], v["epochs_cooldown"]
    if limit is not None:
        try:
            seconds_of(limit)  # type: ignore[arg-type]
        except ValueError as error:
            yield str(error)
    if spikes is not None and spikes <= 0:  # type: ignore[operator]
        yield f"--skip-spikes {spikes}: give a number above 0, such as 6, or leave it out"
    if cooldown is not None and cooldown <= 0:  # type: ignore[operator]
        yield f"--epochs-cooldown {cooldown}: give a number above 0"


def _out_of_range(v: dict[str, object]) -> Iterator[str]:
    yield from _endings(v)
    for name in _AT_LEAST_ONE:
        if v[name] is not None and v[name] < 1:  # type: ignore[operator]
            yield f"--{name.replace('_', '-')} {v[name]}: give 1 or more"
    for name in _AT_LEAST_ZERO:
        if isinstance(v[name], (int, float)) and v[name] < 0:  # type: ignore[operator]
            yield f"--{name.replace('_', '-')} {v[name]}: give 0 or more"
    for name in ("lr", "eps"):
        if v[name] <= 0:  # type: ignore[operator]
            yield f"--{name} {v[name]}: give a number above 0"
    if not 0 <= v["data_tolerate_error_p"] < 1:  # type: ignore[operator]
        yield f"--data-tolerate-error-p {v['data_tolerate_error_p']}: give a share from 0 to below 1"
    for name in ("beta1", "beta2"):
        if not 0 <= v[name] < 1:  # type: ignore[operator]
            yield f"--{name} {v[name]}: give a number from 0 to below 1"
    if v["grad_clip_norm"] is not None and v["grad_clip_norm"] <= 0:  # type: ignore[operator]
        yield f"--grad-clip-norm {v['grad_clip_norm']}: give a number above 0, or leave it out"
