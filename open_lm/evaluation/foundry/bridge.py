"""Any model on LLM Foundry's evaluators: entries of a task YAML -> one `Result` by task name, and by category where there are.

Composer's trainer runs the evaluators, LLM Foundry's metrics count; the model sees ids [batch, seq] and gives fp32 logits
[batch, seq, vocab], or generates text. With torchrun each process takes its share of the questions.

Imported in LLM Foundry's environment only.
"""

from __future__ import annotations

import inspect
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
import torch.nn.functional as F
from composer.core import Evaluator, Precision
from composer.models import ComposerModel
from composer.trainer import Trainer
from composer.utils import dist, get_device, reproducibility
from llmfoundry.eval.metrics import (
    InContextLearningGenerationExactMatchAccuracy,
    InContextLearningLMAccuracy,
    InContextLearningMultipleChoiceAccuracy,
)
from llmfoundry.utils.builders import build_icl_evaluators
from torch import Tensor

from open_lm import storage
from open_lm.evaluation.answers import with_ends
from open_lm.evaluation.foundry.datasets import CLASSES, PREFIX, ShortRequests
from open_lm.evaluation.foundry.entries import METRICS, Entry, FoundryFile
from open_lm.evaluation.hf_model import HFModel
from open_lm.evaluation.hf_tokenizer import Declared
from open_lm.evaluation.models import continue_prompts
from open_lm.evaluation.precision import Precision as OurPrecision
from open_lm.evaluation.result import Result, notice, shots_given
from open_lm.model.transformer import Transformer
from open_lm.params.fields import UserError, nearest
from open_lm.progress import Progress
from open_lm.tokenizer import Tokenizer

TIMEOUT = 600.0


@dataclass(frozen=True)
class BridgeOptions:
    """How entries are run; none of it changes a score but the precision and the length."""

    max_seq_len: int
    """Longest request where a task doesn't say."""
    precision: OurPrecision = "fp32"
    device: str = "cpu"
    limit: int | None = None
    """Questions of each task, or of each category."""
    cut: bool = True
    """Pad to the longest request of a batch; else to max_seq_len, as LLM Foundry does."""


class ContinuationLogits:
    """Stands for logits [batch, seq, vocab], of which LLM Foundry's metrics read those that predict a continuation, row by row."""

    def __init__(self, places: Sequence[Tensor], logits: Sequence[Tensor], width: int):
        """Of each row: the positions in the flat batch, int64, and their logits [positions, vocab] fp32."""
        self.places, self.logits, self.width = places, logits, width

    def __getitem__(self, row: int) -> RowLogits:
        return RowLogits(self.places[row] - row * self.width, self.logits[row])


@dataclass(frozen=True)
class RowLogits:
    """Of one row."""

    positions: Tensor
    logits: Tensor

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """The logits at these positions of the row, which are all that there are."""
        assert dim == 0 and torch.equal(index, self.positions)
        return self.logits


class OpenLM(ComposerModel):
    """The model as Composer's trainer wants it: ids [batch, seq] to logits at the continuations, or to texts."""

    def __init__(self, model: Transformer | HFModel, tokenizer: Any):
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        metrics = (InContextLearningMultipleChoiceAccuracy, InContextLearningLMAccuracy, InContextLearningGenerationExactMatchAccuracy)
        self.metrics = {metric.__name__: metric() for metric in metrics}
        self.labels: Any = None
        # Sentencepiece text lacks the space that its first token stands for.
        self.space = "" if len(tokenizer(" a", add_special_tokens=False)["input_ids"]) == 1 else " "

    def forward(self, batch: dict[str, Any]) -> ContinuationLogits:
        """fp32 logits where continuations are predicted."""
        width = batch["input_ids"].shape[1]
        places = [span - 1 + row * width for row, span in enumerate(batch["continuation_indices"])]

        if isinstance(self.model, HFModel):  # the mask as LLM Foundry gives it to such a model
            logits = self.model.logits_at(batch["input_ids"], torch.cat(places), batch["attention_mask"])
            return ContinuationLogits(places, logits.split([len(place) for place in places]), width)

        def head(hidden: Tensor, weight: Tensor) -> Tensor:
            return F.linear(hidden.flatten(0, 1)[torch.cat(places)], weight).float()

        logits = self.model(batch["input_ids"], head=head)
        return ContinuationLogits(places, logits.split([len(place) for place in places]), width)

    def loss(self, outputs: Any, batch: Any) -> Any:
        """There is no training here."""
        raise NotImplementedError

    def eval_forward(self, batch: dict[str, Any], outputs: Any = None) -> ContinuationLogits | list[str]:
        """Logits, or the texts that continue the contexts. The labels are kept for the metric, moved to where they are predicted."""
        self.labels = batch.pop("labels")
        if batch.get("mode") == "generate":
            return self._generate(batch)
        self.labels[:, :-1] = self.labels[:, 1:].clone()
        self.labels[:, -1] = -100
        return self.forward(batch)

    def _generate(self, batch: dict[str, Any]) -> list[str]:
        # What follows a stop string is cut off by the metric, so that generation needn't end there.
        settings = batch["generation_kwargs"]
        seen = [(row[mask], row) for row, mask in zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True)]
        prompts = [(ids if len(ids) else row[-1:]).tolist() for ids, row in seen]  # a masked token is as good as none
        longest, end = settings["max_new_tokens"], settings["eos_token_id"]
        new = continue_prompts(self.model, prompts, longest, end)
        if end != self.tokenizer.eos_token_id:
            new = with_ends(new, longest, end)
        return [self.space + text for text in self.tokenizer.batch_decode(new, skip_special_tokens=True)]

    def get_metrics(self, is_train: bool) -> dict[str, Any]:
        """LLM Foundry's, by name."""
        return {} if is_train else self.metrics

    def update_metric(self, batch: Any, outputs: Any, metric: Any) -> dict[str, Any]:
        """Count a batch."""
        metric.update(batch=batch, outputs=outputs, labels=self.labels)
        return {}


def foundry_tokenizer(tokenizer: Tokenizer, declared: Declared | None = None) -> Any:
    """Ours as a transformers tokenizer: its own end of text and padding, and what its files declare."""
    from transformers import PreTrainedTokenizerFast

    declared = declared or Declared()
    named = {"bos_token": declared.begin, "pad_token": tokenizer.pad_token}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend,
        eos_token=tokenizer.eot_token,
        clean_up_tokenization_spaces=declared.clean_up,
        **{name: token for name, token in named.items() if token},
    )


def score_entries(
    model: Transformer | HFModel,
    tokenizer: Tokenizer,
    file: FoundryFile,
    options: BridgeOptions,
    report: Callable[[str, Result, int], None] = lambda name, result, longest: None,
    declared: Declared | None = None,
    tell: Callable[[str], None] = lambda line: None,
    done: Callable[[Entry, dict[str, Result]], None] = lambda entry, results: None,
) -> dict[str, Result]:
    """Results by `<label>/<n>-shot[/<category>]`; `report` hears of each, with its longest request in tokens, as it is ready, `tell` of
    examples that are lacking and questions that are cut, `done` of each whole entry.

    Raises:
        UserError: keys that LLM Foundry doesn't know.
        ValueError: data that LLM Foundry can't read, with the task.
    """
    _check_keys(file.entries)
    device = get_device("gpu" if options.device.startswith("cuda") else options.device)
    dist.initialize_dist(device, timeout=TIMEOUT)
    reproducibility.seed_all(file.seed)
    datasets.disable_progress_bars()
    theirs = foundry_tokenizer(tokenizer, declared)
    precision = Precision.AMP_BF16 if options.precision == "amp_bfloat16" else Precision.FP32
    composed = OpenLM(model, theirs)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No optimizer was specified")
        trainer = Trainer(model=composed, device=device, precision=precision, progress_bar=False, auto_log_hparams=False)
    results: dict[str, Result] = {}
    with Progress("tasks", len(file.entries), "tasks") as shown:
        for entry in file.entries:
            with _scratch() as folder:
                start, found = time.perf_counter(), dict[str, Result]()
                evaluators = _evaluators(entry, theirs, options, file.batch_size, folder)
                for evaluator in evaluators:
                    data = _dataset(evaluator)
                    name = _name(entry, evaluator)
                    said = notice(name, data.num_fewshot, len(data.dataset), data.trimmed, len(data), data.max_seq_len)
                    if said:
                        tell(said)
                    found[name] = _score(trainer, evaluator, METRICS[entry.icl_task_type], start)
                    report(name, found[name], data.longest)
                    start = time.perf_counter()
            results |= found
            done(entry, found)
            shown.done += 1
    trainer.close()
    model.eval()  # the trainer leaves it as for training
    return results


def _check_keys(entries: Sequence[Entry]) -> None:
    problems = []
    for entry in entries:
        known = {"batch_size", "metric_names"}
        for ancestor in CLASSES[entry.icl_task_type].__mro__:
            if ancestor.__module__.startswith("llmfoundry") and "__init__" in vars(ancestor):
                known |= set(inspect.signature(vars(ancestor)["__init__"]).parameters) - {"self", "tokenizer", "pad_tok_id"}
                break
        known |= {"hf_loading_vars", "hf_parsing_map", "has_categories"}
        problems += [f"--eval-yaml: {entry.label}: unknown key {key}.{nearest(key, known)}" for key in entry.others if key not in known]
    if problems:
        raise UserError(problems)


def _name(entry: Entry, evaluator: Evaluator) -> str:
    """LLM Foundry's with the number of examples that there are."""
    data = _dataset(evaluator)
    asked, given = data.num_fewshot, shots_given(data.num_fewshot, len(data.dataset))
    return entry.label + str(evaluator.label).removeprefix(entry.label).replace(f"/{asked}-shot", f"/{given}-shot", 1)


def _dataset(evaluator: Evaluator) -> ShortRequests:
    dataset: ShortRequests = evaluator.dataloader.dataloader.dataset
    return dataset


def _score(trainer: Trainer, evaluator: Evaluator, metric: str, start: float) -> Result:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Cannot split .* of length")  # the last batch is a short one
        trainer.eval(eval_dataloader=evaluator)
    questions = len(_dataset(evaluator))
    accuracy = float(trainer.state.eval_metrics[evaluator.label][metric].compute())  # over all processes, in fp32
    return Result(round(accuracy * questions) / questions, questions, time.perf_counter() - start)


def _evaluators(entry: Entry, tokenizer: Any, options: BridgeOptions, batch_size: int, folder: Path) -> list[Evaluator]:
    """LLM Foundry's evaluators of one entry, for each number of examples and each category."""
    config: dict[str, Any] = {
        "label": entry.label,
        "dataset_uri": _fetched(entry.dataset_uri, folder),
        "num_fewshot": list(entry.num_fewshot),
        "icl_task_type": PREFIX + entry.icl_task_type,
        "metric_names": [METRICS[entry.icl_task_type]],
        "has_categories": entry.has_categories,
        **{key: value for key, value in entry.others.items() if key != "metric_names"},
        "limit": options.limit,
        "cut": options.cut,
    }
    config.setdefault("max_seq_len", options.max_seq_len)
    if not entry.dataset_uri.startswith("hf://"):  # the rows are copied into memory; a cache of them would only grow
        datasets.config.HF_DATASETS_CACHE = str(folder / f"cache-{os.getpid()}")
    try:
        evaluators, _ = build_icl_evaluators([config], tokenizer, options.max_seq_len, batch_size, destination_dir=str(folder))
    except Exception as error:  # LLM Foundry raises plain Exception for data that don't fit
        raise ValueError(
            f"--eval-yaml: {entry.label}: LLM Foundry can't read {entry.dataset_uri}: {' '.join(str(error).split())}"
        ) from error
    return list(evaluators)


def _fetched(uri: str, folder: Path) -> str:
    """A local file with the data; hf:// is left to LLM Foundry."""
    if uri.startswith("hf://") or not storage.is_remote(uri):
        return uri if uri.startswith("hf://") else str(storage.local_path(uri).resolve())
    path = folder / f"fetched-{os.getpid()}.jsonl"
    storage.write_bytes(str(path), storage.read_bytes(uri))
    return str(path)


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder for the copies that LLM Foundry makes of the data, the same for all processes of a machine; removed at the end."""
    names = [tempfile.mkdtemp(prefix="open_lm_eval_")] if dist.get_global_rank() == 0 else [""]
    dist.broadcast_object_list(names)
    folder = Path(names[0])
    folder.mkdir(exist_ok=True)
    try:
        yield folder
        dist.barrier()  # no process reads there any more
    finally:
        if dist.get_local_rank() == 0:
            shutil.rmtree(folder, ignore_errors=True)
