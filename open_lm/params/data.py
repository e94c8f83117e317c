"""Options of the data: which shards, in which order, how many tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from open_lm.params.fields import flag


@dataclass(frozen=True)
class DataParams:
    """training data"""

    train_data: tuple[str, ...] = ()
    """Shards to train on: brace patterns or globs of tar files, or a manifest.jsonl beside them, local or behind an url (s3://,
    https://, hf://, ...), one source each; `a::b` joins parts into one source, as are shards of one folder that are named one by one."""
    dataset_manifest: tuple[str, ...] = flag((), "--dataset-metadata")
    """manifest.jsonl files, one source each, read without replacement; their shards lie beside them. Together with --train-data: the
    counts of each of its sources, by file name, for `pipe:` and for shards elsewhere."""
    train_data_mix_weights: tuple[float, ...] = ()
    """Share of each source in the rows of a run. Default: in proportion to the sources' rows."""
    train_data_upsampling_factors: tuple[str, ...] = ()
    """With --dataset-resampled: how often the shards of each `::` part are drawn, relative to their rows; `1::2` or `1 2`."""
    dataset_resampled: bool = False
    """Draw shards with replacement instead of in passes that see every row once."""
    multiple_data_passes: bool = False
    """Allow more than one pass over a source when --train-num-samples asks for more rows than it has."""
    train_num_samples: int | None = flag(None, "--train-num-tokens")
    """Tokens per epoch. Default: one pass over the data."""
    data_key: str | None = None
    """Extension of the members that hold tokens (txt, json, json.gz, npy). Default: found from the first shard."""
    dataset_type: Literal["webdataset", "auto", "synthetic"] = "auto"
    """webdataset shards (auto means the same), or synthetic: random tokens without any file."""
    tokenizer: str | None = None
    """Tokenizer name, folder or tokenizer.json of the shards. Default: the one that lies beside them, if any."""
    allow_tokenizer_mismatch: bool = False
    """Go on where shards, validation shards, checkpoints and tasks are known to be of different tokenizers, or of one with more ids than
    the model knows; such differences become warnings."""
    seed: int = 0
    """Seed of the order of the data and of the initial weights."""
    data_streams: int | None = None
    """Streams that the rows are dealt to; a run may use any number of processes that divides it. Default: global batch size."""
    shuffle_window: int = 8192
    """Rows that are permuted among themselves, over all streams and sources."""
    disable_buffer: bool = False
    """No shuffling inside windows: the same as --shuffle-window 1."""
    workers: int = 1
    """Processes that read shards, for each training process; 0 reads in the training process itself."""
    scan_remote_shards: bool = False
    """Count the rows of remote shards that no manifest names by reading them once; the counts are kept in the user's cache."""
    allow_pipe: bool = False
    """Allow `pipe:COMMAND` as training data: a program (no shell) that writes a shard; needs --dataset-manifest."""
    data_cache: str | None = None
    """Folder that keeps shards from elsewhere, shared by all processes and runs. Default: a private one, removed at the end."""
    data_cache_size: str | None = None
    """Bytes that it may take, such as 200GB; shards used longest ago go first. Default: half of what is free on its disk."""
    verify_shards: bool = False
    """Compare the sha256 of every shard with its manifest when a process first opens it (fetched ones: always when they come)."""
    target_mask_left: int | None = None
    """Train on no target up to and including the last token with this id in a row. This and the next three leave validation alone."""
    target_mask_individual: int | None = None
    """Train on no target that has this id."""
    squash_mask_left: bool = False
    """With --target-mask-left: take that token out of the rows, which close the gap, after it has done its work."""
    document_mask: bool = False
    """Let a token attend inside its own document only; documents end with the end of text of the shards."""
    ignore_parse_errors: bool = False
    """Members that can't be read count as lost rows, fully masked, within --data-tolerate-error-p."""
    data_tolerate_error_p: float = 0.0
    """Share of a process's rows of the whole run that may be lost to shards that can't be read; their rows are fully masked. Above it the
    run stops."""
    new_data_plan: bool = False
    """With --resume: go on with other data, seed, mix or sequence length from here on, where they would be refused."""


@dataclass(frozen=True)
class ValidationParams:
    """validation"""

    val_data: tuple[str, ...] = ()
    """Shards to validate on, one set each."""
    val_data_key: tuple[str, ...] = ()
    """Extension of the token members of each validation set. Default: found from the first shard."""
    val_num_samples: int | None = None
    """Tokens of each set to use, over all processes. Default: all."""
    val_frequency: int = 1
    """Epochs between validations."""
    global_val_batch_size: int | None = None
    """Sequences per validation batch over all processes. Default: the global batch size."""
    val_seq_ci: bool = False
    """95 % bootstrap bounds of the mean over sequences of their mean loss: loss_sequences_{lower,upper}_95 in results.jsonl."""
    val_tok_ci: bool = False
    """95 % bootstrap bounds of the mean loss of tokens: loss_tokens_{lower,upper}_95. Its time grows with tokens x --val-iter-ci."""
    val_max_pop_ci: int | None = None
    """Most sequences or tokens that a resample draws; fewer than there are make wider bounds. Default: as many as there are."""
    val_iter_ci: int = 10_000
    """Resamples that the bounds are taken from."""
    eval_tasks: str | None = None
    """YAML of benchmark tasks, such as eval/light.yaml, to score while training; into the logs and checkpoints/eval_tasks.jsonl."""
    eval_tasks_frequency: int = 1
    """Epochs between such scores; the last epoch has them always."""


@dataclass(frozen=True)
class BatchParams:
    """batch and length of the run"""

    batch_size: int | None = flag(None, "--per-gpu-batch-size")
    """Sequences per process and optimizer step; split, not multiplied, by --accum-freq."""
    global_batch_size: int | None = None
    """Sequences per optimizer step over all processes. Default: 64."""
    accum_freq: int = 1
    """Micro-batches that a process's share of the batch is split into."""
    epochs: int = 32
    """Epochs of --train-num-samples tokens each."""
