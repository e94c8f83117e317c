"""What a resumed run keeps and what it may change: its plans of the data and its batch sizes, each from where it began.

Processes, workers, epochs and the global batch size may change freely: the position of a run is a number of sequences. Data, seed,
mix and sequence length may change with --new-data-plan only; the rows of a new plan are numbered from its own first one on.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import Any

from open_lm.checkpoint.run_state import RunState
from open_lm.checkpoint.state_folder import run_states
from open_lm.data.plan import differences
from open_lm.model.config import ModelConfig
from open_lm.params import BatchParams, OptimizerParams, Params
from open_lm.train.run_folder import RunFolder
from open_lm.train.schedule import RunLength, make_schedule


@dataclass(frozen=True)
class Lineage:
    """The plans and batch sizes of a run up to now, oldest first, as they go into its run states; see `RunState`.

    Args:
        plans: each with the number of its first row.
        batches: each with the step, sequences and tokens before it.
        notes: what changed at this resume, in words.
    """

    plans: tuple[dict[str, Any], ...]
    batches: tuple[dict[str, int], ...]
    notes: tuple[str, ...] = ()

    @property
    def first(self) -> int:
        """Number of the first row of the present plan: row g of the run is row g - first of the plan."""
        return int(self.plans[-1]["first"])

    def length(self, length: RunLength) -> RunLength:
        """A run's length with what its changes of batch size mean for it."""
        first, last = self.batches[0], self.batches[-1]
        if len(self.batches) == 1:
            return length
        unit = Fraction(first["global_batch_size"] * first["seq_len"], last["seq_len"])
        before = last["tokens"] // last["seq_len"]
        return replace(length, first_step=last["step"], sequences_before=before, sequences_per_schedule_step=unit)


def start_lineage(description: dict[str, Any], global_batch_size: int, seq_len: int, about: dict[str, Any] | None = None) -> Lineage:
    """Of a run that begins. `about`: the rest of a plan's entry; see `data.plans_file`."""
    return Lineage(({"first": 0, "plan": description, **(about or {})},), (_batch(0, 0, 0, global_batch_size, seq_len),))


def resume_lineage(
    state: RunState,
    description: dict[str, Any],
    config: ModelConfig,
    batch: int,
    new_plan: bool,
    about: dict[str, Any] | None = None,
    tokenizer_compared: bool = False,
) -> Lineage:
    """Of a run that goes on from a state.

    Args:
        description: of the plan that the options make now.
        config: of the model that the options make now.
        batch: global batch size from here on.
        new_plan: --new-data-plan.
        about: the rest of a plan's entry; see `data.plans_file`.
        tokenizer_compared: see `differences`.

    Raises:
        ValueError: with every difference that is not allowed, in words.
    """
    data = differences(state.plan, description, tokenizer_compared) if state.plan else _foreign(state, config)
    _refuse(state, data, {} if tokenizer_compared else description, config, new_plan)
    plans = tuple(state.plans) or ({"first": 0, "plan": state.plan},)
    notes = []
    if not state.plan:
        plans = ({"first": 0, "plan": description},)
        notes.append(
            f"OpenLM's own order of the data can't be continued: the run goes on at row {state.sequences} (its steps times its batch) "
            "of this project's order, which may hold rows that it has seen"
        )
    if data:
        plans = (*plans, {"first": state.sequences, "plan": description, **(about or {})})
        notes.append(f"--new-data-plan: from sequence {state.sequences} on, after step {state.step}: {'; '.join(data)}")
    else:  # the same plan, though it may be described in more detail than an older version did
        plans = (*plans[:-1], {**plans[-1], "plan": description, **(about or {})})
    batches = tuple(state.batches) or (_batch(0, 0, 0, state.global_batch_size, int(state.plan["seq_len"])),)
    now = _batch(state.step, state.sequences, state.tokens, batch, config.seq_len)
    if _sizes(now) != _sizes(batches[-1]):
        old = batches[-1]
        batches = (*batches, now)
        if old["global_batch_size"] != batch:
            notes.append(
                f"--global-batch-size was {old['global_batch_size']}, is {batch} from step {state.step} on: the rows go on in their order, "
                "epochs end at their sequences, and the learning rate follows the sequences"
            )
    return Lineage(plans, batches, tuple(notes))


def _foreign(state: RunState, config: ModelConfig) -> list[str]:
    """What differs from a run that OpenLM left, of whose data only the length of the rows is known."""
    before = state.batches[-1]["seq_len"]
    return [] if before == config.seq_len else [f"the sequence length was {before}, is {config.seq_len}"]


def _batch(step: int, sequences: int, tokens: int, global_batch_size: int, seq_len: int) -> dict[str, int]:
    return {"step": step, "sequences": sequences, "tokens": tokens, "global_batch_size": global_batch_size, "seq_len": seq_len}


def _sizes(batch: dict[str, int]) -> tuple[int, int]:
    return batch["global_batch_size"], batch["seq_len"]


def _refuse(state: RunState, data: list[str], description: dict[str, Any], config: ModelConfig, new_plan: bool) -> None:
    """Raises ValueError for differences that stand in the way."""
    new = config.to_dict()
    free = {"seq_len"} if new_plan else set()
    known = state.model_config  # empty for a run that OpenLM left; there the shapes of the weights tell
    keys = [k for k in {**new, **known} if known and k not in free and known.get(k) != new.get(k)]
    model = [f"--model: {key} was {state.model_config.get(key)}, is {new.get(key)}" for key in keys]
    tokenizers = state.plan.get("tokenizer_sha256"), description.get("tokenizer_sha256")
    if new_plan and None not in tokenizers and tokenizers[0] != tokenizers[1]:
        model.append("the new data were made with another tokenizer, whose ids mean other tokens")
    if model or (data and not new_plan):
        remedy = "give what it began with, or a new --name"
        remedy += "" if model else ", or --new-data-plan to go on with the new data from here on"
        changed = model if new_plan else data + model
        raise ValueError(f"--resume: the run at step {state.step} can't go on: {'; '.join(changed)}; {remedy}")


def epochs_complete(state: RunState, length: RunLength) -> int:
    """Epochs that a resumed run has completed: as saved, unless an epoch has another length now."""
    if state.epoch is not None and state.sequences_per_epoch == length.sequences_per_epoch:
        return min(state.epoch, length.epochs)
    if state.epoch is not None and not state.plan:  # OpenLM's epochs end where its workers' data do; none is completed twice
        return min(length.epochs, max(state.epoch, length.epochs_done(state.step)))
    return length.epochs_done(state.step)


def as_restarted(params: Params, folder: RunFolder) -> Params:
    """The options of a run that torchrun starts again: nothing is deleted, and it goes on from its own newest state where it has one."""
    again = params.checkpoint.resume
    if again is None or run_states(params.checkpoint.checkpoint_dir or folder.checkpoints) or run_states(folder.checkpoints):
        again = "latest"
    return replace(params, checkpoint=replace(params.checkpoint, resume=again), log=replace(params.log, overwrite=False))


_ACT = {f.name for topic in (OptimizerParams, BatchParams) for f in fields(topic)} - {"batch_size", "global_batch_size"} | {
    *("target_mask_left", "target_mask_individual", "squash_mask_left", "document_mask", "ignore_parse_errors", "data_tolerate_error_p"),
    *("attn_name", "precision", "fsdp_amp", "fsdp_pure_bf16", "torchcompile", "skip_spikes"),
}
"""Options that act on what a run computes; data, model and batch size are told with the plan (`resume_lineage`)."""


def changes(state: RunState, params: Params, length: RunLength) -> str | None:
    """One line with every option that acts on the result and is not as it was when the state was saved, and what that does to the
    learning rate; None where there is none."""
    before, now = state.params, params.flat()
    changed = [f"--{n.replace('_', '-')} was {before[n]}, is {now[n]}" for n in now if n in _ACT and n in before and before[n] != now[n]]
    told = [f"Changed after step {state.step}: {'; '.join(changed)}"] if changed else []
    note = learning_rate_note(state, params.optimizer, length)
    return ". ".join([*told, *([note] if note else [])]) or None


def learning_rate_note(state: RunState, params: OptimizerParams, length: RunLength) -> str | None:
    """Words where the learning rate of the next step is not the one that the run had planned for it when the state was saved."""
    known = {f.name: state.params[f.name] for f in fields(OptimizerParams) if f.name in state.params}
    planned = make_schedule(replace(params, **known), replace(length, epochs=int(state.params.get("epochs", length.epochs))))(state.step)
    now = make_schedule(params, length)(state.step)
    if abs(now - planned) <= 1e-6 * max(abs(now), abs(planned)):
        return None
    return (
        f"The learning rate of step {state.step + 1} is {now:.4g}; before the resume the run had planned {planned:.4g}. "
        "--dry-run draws the schedule"
    )


def check_rest(state: RunState, length: RunLength) -> None:
    """Raises ValueError where a run is not finished, but what is left of it is less than one batch."""
    if length.total_steps <= state.step and epochs_complete(state, length) < length.epochs:
        left = length.sequences_per_epoch * length.epochs - length.sequences_at(state.step)
        raise ValueError(
            f"--global-batch-size {length.global_batch_size}: {left} sequences are left of the run, less than one batch; "
            f"resume with {left} or less, or give more --epochs"
        )


__all__ = ["Lineage", "as_restarted", "changes", "check_rest", "epochs_complete", "resume_lineage", "start_lineage"]
