"""LLM Foundry alone: its own data sets, padding, evaluators and metrics, on a model that gives whole logits, as OpenLM's script runs it.

Imported in LLM Foundry's environment only.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from composer.core import Precision
from composer.models import ComposerModel
from composer.trainer import Trainer
from composer.utils import dist, get_device
from llmfoundry.eval.metrics import InContextLearningLMAccuracy, InContextLearningMultipleChoiceAccuracy
from llmfoundry.utils.builders import build_icl_evaluators
from torch import Tensor

from open_lm.evaluation.foundry.bridge import foundry_tokenizer
from open_lm.evaluation.foundry.entries import METRICS
from open_lm.model.transformer import Transformer
from open_lm.tokenizer import Tokenizer


class WholeLogits(ComposerModel):
    """ids [batch, seq] to fp32 logits [batch, seq, vocab]."""

    def __init__(self, model: Transformer):
        super().__init__()
        self.model = model
        self.metrics = {one.__name__: one() for one in (InContextLearningMultipleChoiceAccuracy, InContextLearningLMAccuracy)}
        self.labels: Any = None
        self.right: list[int] = []

    def forward(self, batch: dict[str, Any]) -> Tensor:
        """All of them."""
        logits: Tensor = self.model(batch["input_ids"])
        return logits

    def loss(self, outputs: Any, batch: Any) -> Any:
        """There is no training here."""
        raise NotImplementedError

    def eval_forward(self, batch: dict[str, Any], outputs: Any = None) -> Tensor:
        """Logits; labels are kept for the metric, moved to where they are predicted."""
        self.labels = batch.pop("labels")
        self.labels[:, :-1] = self.labels[:, 1:].clone()
        self.labels[:, -1] = -100
        return self.forward(batch)

    def get_metrics(self, is_train: bool) -> dict[str, Any]:
        """LLM Foundry's, by name."""
        return {} if is_train else self.metrics

    def update_metric(self, batch: Any, outputs: Any, metric: Any) -> dict[str, Any]:
        """Count a batch."""
        self.right += metric.update(batch=batch, outputs=outputs, labels=self.labels)["result"]
        return {}


class LLMFoundry:
    """Scores the tasks of a file, or a part of them."""

    def __init__(self, model: Transformer, tokenizer: Tokenizer, max_seq_len: int):
        device = get_device("cpu")
        dist.initialize_dist(device, timeout=600.0)
        self.tokenizer, self.max_seq_len, self.model = foundry_tokenizer(tokenizer), max_seq_len, WholeLogits(model)
        self.trainer = Trainer(model=self.model, device=device, precision=Precision.FP32, progress_bar=False, auto_log_hparams=False)

    def score(self, file: Path, batch_size: int, questions: int) -> dict[str, Any]:
        """The data are read and tokenised whole; of the questions the first are scored, and what they took is taken for all."""
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            [task] = yaml.safe_load(file.read_text(encoding="utf-8"))["icl_tasks"]
            config = {**task, "metric_names": [METRICS[task["icl_task_type"]]]}
            [evaluator], _ = build_icl_evaluators([config], self.tokenizer, self.max_seq_len, batch_size, destination_dir=folder)
            loader: Any = evaluator.dataloader.dataloader
            loader.dataset[0]  # makes all prompts
            ready = time.perf_counter()
            self.model.right = []
            self.trainer.eval(eval_dataloader=evaluator, subset_num_batches=-(-questions // loader.batch_size))
        scored = time.perf_counter() - ready
        right = self.model.right
        seconds = ready - start + scored * len(loader.dataset) / len(right)
        return {"seconds": seconds, "measured_seconds": ready - start + scored, "reading_seconds": ready - start, "right": right}
