"""A step on batches with masks, documents and sources."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from open_lm.checkpoint.run_state import full_tensors, state_tensors
from open_lm.data.batch import Batch
from open_lm.model import attention, rotary
from open_lm.model.attention import torch_attention
from open_lm.model.config import ModelConfig
from open_lm.model.transformer import Transformer
from open_lm.params import OptimizerParams, ParallelParams
from open_lm.train.optimizer import make_optimizer
from open_lm.train.parallel import World, autocast_dtype, join_world, parallelize
from open_lm.train.step import Step, StepConfig

Main = Callable[..., int]
TOKENS = torch.randint(0, 50, (6, 13), generator=torch.Generator().manual_seed(2))
SOURCES = torch.tensor([1, 0, 3, 1, 1, 0])
DOCUMENTS = (torch.arange(12) // 5).expand(6, -1)


def tiny() -> Transformer:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = Transformer(ModelConfig(hidden_dim=16, n_layers=2, n_heads=2, seq_len=12, vocab_size=50))
    model.init_weights()
    return model


def step_of(model: Transformer, **config: Any) -> Step:
    return Step(model, make_optimizer(model, OptimizerParams()), StepConfig(**config), World(0, 1, torch.device("cpu")))


def masked() -> Tensor:
    """A row with a masked beginning, which the rest of it is predicted from, and a row that is masked all through."""
    tokens = TOKENS.clone()
    tokens[0, :6] = ~tokens[0, :6]
    tokens[3] = ~tokens[3]
    return tokens


@pytest.mark.parametrize("accum_freq", [1, 3])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_losses_of_sources_are_sums_over_their_rows(accum_freq: int, z_loss: float) -> None:
    model, tokens = tiny(), masked()
    with torch.no_grad():
        logits = model(TOKENS[:, :-1], document_ids=DOCUMENTS)
        losses = F.cross_entropy(logits.transpose(1, 2), TOKENS[:, 1:], reduction="none") * (tokens[:, 1:] >= 0)
    result = step_of(model, accum_freq=accum_freq, z_loss=z_loss, sources=4)(Batch(tokens, DOCUMENTS, SOURCES), 1e-3)
    nats, counts = result.by_source
    assert counts.tolist() == [24, 7 + 12, 0, 12]
    for source in range(4):
        assert float(nats[source]) == pytest.approx(float(losses[source == SOURCES].sum()), rel=1e-5)
    if not z_loss:
        assert float(result.loss) == pytest.approx(float(nats.sum() / counts.sum()), rel=1e-6)


def test_a_masked_target_is_read_and_not_asked_for() -> None:
    """The gradient is that of the targets that count, the inputs those of the whole text."""
    model, tokens = tiny(), masked()
    result = step_of(model, grad_clip_norm=1e9)(Batch(tokens), 0.0)
    plain = tiny()
    logits = plain(TOKENS[:, :-1])
    wanted = torch.where(tokens[:, 1:] >= 0, TOKENS[:, 1:], -100)
    loss = F.cross_entropy(logits.flatten(0, 1), wanted.flatten())
    loss.backward()
    assert float(result.loss) == pytest.approx(loss.item(), rel=1e-5)
    norm = torch.nn.utils.get_total_norm([p.grad for p in plain.parameters()])
    assert float(result.grad_norm) == pytest.approx(float(norm), rel=1e-4)


WAYS: dict[str, dict[str, Any]] = {
    "fsdp-amp": {"fsdp": True, "fsdp_amp": True},
    "fsdp-amp without autocast": {"fsdp": True, "fsdp_amp": True, "precision": "fp32"},
    "fsdp-pure-bf16": {"fsdp": True, "fsdp_pure_bf16": True},
    "fsdp": {"fsdp": True},
    "ddp": {},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("post_embed_norm", [False, True])
def test_openlm_defect_25_the_rotary_table_is_fp32_in_every_attention(monkeypatch: Any, way: str, post_embed_norm: bool) -> None:
    rotated: list[tuple[torch.dtype, ...]] = []
    attended: set[torch.dtype] = set()

    def rotate(x: Tensor, table: tuple[Tensor, Tensor], kind: Any) -> Tensor:
        rotated.append((x.dtype, *(part.dtype for part in table)))
        return rotary.rotate(x, table, kind)

    def kernel(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        attended.update((q.dtype, k.dtype, v.dtype))
        return torch_attention(q, k, v, mask)

    monkeypatch.setattr(attention, "rotate", rotate)
    config = ModelConfig(16, 2, 2, seq_len=12, vocab_size=50, weight_tying=True, ffn_type="gelu", post_embed_norm=post_embed_norm)
    steps = []
    with join_world(ParallelParams(force_distributed=True)) as world:
        for checkpointing in (False, True):
            params = ParallelParams(grad_checkpointing=checkpointing, **WAYS[way])
            torch.manual_seed(0)
            plain = Transformer(config, kernel)
            plain.init_weights()
            model = parallelize(plain, params, world)
            steps.append(Step(model, make_optimizer(model, OptimizerParams()), StepConfig(autocast=autocast_dtype(params)), world))
        rotated.clear(), attended.clear()
        losses = [[float(step(Batch(TOKENS), 1e-2).loss) for _ in range(3)] for step in steps]
    assert losses[0] == losses[1], "recomputation changes nothing"
    assert losses[0][2] < losses[0][0]
    assert set(rotated) == {(torch.bfloat16, torch.float32, torch.float32)}
    assert len(rotated) == 3 * 2 * 2 * 3  # steps x layers x (q, k) x (once, and twice with recomputation)
    assert attended == {torch.bfloat16}


def test_deterministic_holds_while_the_world_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    monkeypatch.delenv("NCCL_ALGO", raising=False)
    params = ParallelParams(force_distributed=True, deterministic=True, precision="fp32")
    with join_world(params) as world:
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.backends.cudnn.deterministic
        assert not torch.backends.cudnn.benchmark
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"  # what cuBLAS can be deterministic with
        model = parallelize(tiny(), params, world)
        step = Step(model, make_optimizer(model, OptimizerParams()), StepConfig(grad_clip_norm=1.0), world)
        losses = [float(step(Batch(masked(), DOCUMENTS), 1e-2).loss) for _ in range(3)]
        assert losses[2] < losses[0]
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.deterministic
    assert torch.backends.cuda.cudnn_sdp_enabled()
    step = step_of(tiny(), grad_clip_norm=1.0)
    assert losses == [float(step(Batch(masked(), DOCUMENTS), 1e-2).loss) for _ in range(3)]


def test_a_tied_model_is_one_under_fsdp() -> None:
    config = ModelConfig(16, 2, 2, seq_len=12, vocab_size=50, weight_tying=True, ffn_type="gelu")
    losses, tensors = [], []
    with join_world(ParallelParams(force_distributed=True)) as world:
        for fsdp in (False, True):
            torch.manual_seed(0)
            plain = Transformer(config)
            plain.init_weights()
            model = parallelize(plain, ParallelParams(fsdp=True, precision="fp32"), world) if fsdp else plain
            step = step_of(model)
            losses.append([float(step(Batch(TOKENS), 1e-2).loss) for _ in range(3)])
            tensors.append(full_tensors(model))
            assert len(state_tensors(model, step.optimizer)) == 4 * len(list(Transformer(config).parameters()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert list(tensors[0]) == list(tensors[1])
    assert all(t["tok_embeddings.weight"] is t["output.weight"] for t in tensors)


class Readings(TorchDispatchMode):
    """Counts the tensors that the host reads, each of which waits for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        waits = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default, torch.ops.aten.nonzero.default)
        self.count += func in waits
        return func(*args, **(kwargs or {}))


def test_a_step_with_documents_and_sources_reads_nothing_from_the_device() -> None:
    step, batch = step_of(tiny(), accum_freq=2, grad_clip_norm=1.0, sources=4), Batch(masked(), DOCUMENTS, SOURCES)
    with Readings() as readings:
        result = step(batch, 1e-3)
    assert readings.count == 0
    with readings:
        result.loss.item()
    assert readings.count == 1


def source_flags(bench: Any) -> list[str]:
    """A second source beside the one that every run of the bench has."""
    return ["--train-data", str(bench.folder / "shards/shard-{0000002..0000003}.tar"), "--multiple-data-passes"]


NAMES = ("loss/shard-_0000000..0000003", "loss/shard-_0000002..0000003")


def test_a_run_of_several_sources_tells_the_loss_of_each(bench: Any, main_here: Main) -> None:
    assert main_here("a", *source_flags(bench)) == 0
    for line in (bench.folder / "logs/a/metrics.jsonl").read_text().splitlines():
        metrics = json.loads(line)
        told = [metrics[name] for name in NAMES if name in metrics]
        assert min(told) - 1e-6 <= metrics["loss"] <= max(told) + 1e-6
        assert told


def test_losses_of_sources_are_means_since_the_last_log_line(bench: Any, main_here: Main) -> None:
    assert main_here("each", *source_flags(bench)) == 0
    assert main_here("tenth", *source_flags(bench), "--log-every-n-steps", "10") == 0
    lines = [json.loads(line) for line in (bench.folder / "logs/each/metrics.jsonl").read_text().splitlines()]
    means = bench.metrics("tenth", NAMES[0])
    assert len(means) == 3
    for mean, ten in zip(means, (lines[:10], lines[10:20], lines[20:]), strict=True):
        each = [line[NAMES[0]] for line in ten if NAMES[0] in line]
        assert len(each) > 1
        assert min(each) < mean < max(each)


def test_masks_reach_training_and_leave_validation_alone(bench: Any, main_here: Main) -> None:
    flags = ["--val-data", str(bench.folder / "shards/shard-0000001.tar"), "--lr", "1e-12", "--epochs", "1"]
    more = ["--target-mask-left", "5", "--squash-mask-left", "--target-mask-individual", "6", "--document-mask"]
    assert main_here("plain", *flags) == 0
    assert main_here("masked", *flags, *more) == 0
    assert all(abs(a - b) > 1e-4 for a, b in zip(bench.metrics("plain"), bench.metrics("masked"), strict=True))
    results = [
        json.loads((bench.folder / f"logs/{name}/checkpoints/results.jsonl").read_text().splitlines()[0]) for name in ("plain", "masked")
    ]
    assert results[0][0]["tokens"] == results[1][0]["tokens"] == 80 * 32
    assert results[0][0]["loss"] == pytest.approx(results[1][0]["loss"], abs=1e-6)


def test_a_mask_that_can_match_nothing_is_told_before_training(bench: Any, main_here: Main, capsys: pytest.CaptureFixture[str]) -> None:
    assert main_here("a", "--target-mask-left", "64") == 2
    assert "--target-mask-left 64: the vocabulary has the ids 0 to 63" in capsys.readouterr().err


@pytest.mark.slow
def test_masks_and_losses_of_sources_agree_on_1_and_2_processes(bench: Any) -> None:
    flags = [*source_flags(bench), "--target-mask-left", "5", "--target-mask-individual", "6", "--document-mask"]
    for name, processes, more in (("one", 1, ()), ("two", 2, ("--fsdp", "--workers", "2", "--accum-freq", "2"))):
        done = bench.run(processes, name, *flags, "--log-every-n-steps", "5", *more)
        assert done.returncode == 0, done.stderr[-3000:]
    for key in ("loss", *NAMES):
        assert bench.metrics("two", key) == pytest.approx(bench.metrics("one", key), rel=1e-6)
