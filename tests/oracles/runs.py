"""Small runs of a checkout: their order, numbers, files and names."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from workshop import SEQ_LEN, VOCAB, Workshop, digest

BATCH = 8
PLANS: dict[str, list[str]] = {
    "passes": ["--train-data", "npy/32-v1/0/shard-{0000000..0000007}.tar", "--multiple-data-passes"],
    "manifest": ["--dataset-manifest", "txt/32-v1/0/manifest.jsonl", "txt/32-v1/1/manifest.jsonl", "--multiple-data-passes", "--seed", "3"],
    "mix": [
        *("--train-data", "npy/32-v1/0/shard-{0000000..0000003}.tar", "json_gz/32-v1/0/shard-{0000000..0000004}.tar"),
        *("--train-data-mix-weights", "3", "1", "--multiple-data-passes", "--data-streams", "16"),
    ],
    "resampled": ["--train-data", "npy/32-v1/0/shard-{0000000..0000007}.tar", "--dataset-resampled"],
    "upsampled": [
        *("--train-data", "npy/32-v1/0/shard-0000000.tar::npy/32-v1/0/shard-0000001.tar", "txt/32-v1/0/shard-{0000000..0000002}.tar"),
        *("--train-data-upsampling-factors", "4::1", "1", "--dataset-resampled", "--shuffle-window", "500"),
    ],
    "joined": [
        *("--train-data", "npy/32-v1/0/shard-{0000000..0000002}.tar::npy/32-v1/0/shard-0000005.tar", "json_gz/32-v1/0/shard-0000000.tar"),
        *("--multiple-data-passes", "--shuffle-window", "1", "--seed", "1"),
    ],
}
"""By name, the data options of a run; two more plans are what resumes with other data and another batch make of the first."""


def flags(name: str, *more: object) -> list[str]:
    """Of a run of 20 steps in two epochs; later ones win."""
    common = f"-m open_lm.main --model tiny.json --train-num-samples {10 * BATCH * SEQ_LEN} --epochs 2 --global-batch-size {BATCH}"
    common += " --precision fp32 --lr 3e-3 --warmup 3 --wd 0.1 --log-every-n-steps 1 --grad-clip-norm 1 --workers 1 --logs-dir logs"
    return [*common.split(), "--name", name, *map(str, more)]


def make_models(shop: Workshop) -> None:
    """Configurations of small models."""
    tiny = {"hidden_dim": 16, "n_layers": 2, "n_heads": 2, "seq_len": SEQ_LEN, "vocab_size": VOCAB}
    (shop.folder / "tiny.json").write_text(json.dumps(tiny))
    head = {
        **tiny,
        "positional_embedding_type": "head_rotary",
        "qk_norm": True,
        "model_norm": "gain_only_lp_layer_norm",
        "weight_tying": True,
    }
    (shop.folder / "head.json").write_text(json.dumps(head))


def hash_plans(shop: Workshop) -> dict[str, str]:
    """The first 200 batches of eight plans: what describes them, the order of the rows, and what inspection shows of one batch."""
    found = {}
    for name, options in PLANS.items():
        found |= order(shop, name, options)
    found |= order(shop, "passes_then_mix", [*PLANS["passes"], "--epochs", "1"], [*PLANS["mix"], "--new-data-plan", "--resume", "latest"])
    again = ["--global-batch-size", "12", "--data-streams", "8", "--resume", "latest"]
    legs = [*PLANS["resampled"], "--epochs", "1"], [*PLANS["resampled"], *again]
    found |= order(shop, "batch_8_then_12", *legs, steps=("1:101", "101:161"))
    shown = shop.run("scripts/inspect_batch.py", "--run", "logs/plan_mix", "--step", 7, "--sources", "--text")
    found["inspect_batch"] = digest(shop.here(shown.encode()))
    ranks = [shop.run("scripts/inspect_batch.py", "--run", "logs/plan_mix", "--step", 7, "--world-size", 4, "--rank", r) for r in range(4)]
    found["inspect_batch.4_processes"] = digest(*(shop.here(shown.encode()) for shown in ranks))
    return found


def order(shop: Workshop, name: str, *legs: list[str], steps: tuple[str, ...] = ("1:201",)) -> dict[str, str]:
    """Of the first steps of a run of 200 (of 8 rows), resumed with other options where there are several legs."""
    for options in legs:
        shop.run(*flags(f"plan_{name}", "--train-num-samples", 100 * BATCH * SEQ_LEN, "--log-every-n-steps", 100, *options))
    parts: list[bytes | str] = []
    for part in steps:
        shop.run(
            "scripts/inspect_batch.py",
            "--run",
            f"logs/plan_{name}",
            "--steps",
            part,
            "--order-file",
            f"{name}-{part}.npy".replace(":", "-"),
        )
        rows = np.load(shop.folder / f"{name}-{part}.npy".replace(":", "-"))
        parts += [str(rows.shape), rows.astype("<i8").tobytes()]
    plans = described(json.loads(shop.bytes(f"logs/plan_{name}/plans.json")))
    return {f"order.{name}": digest(*parts), f"plan.{name}": digest(json.dumps(plans, sort_keys=True))}


def described(value: Any) -> Any:
    """Of a run's plans, what decides the order."""
    if isinstance(value, dict):
        if "shares" in value and "window" in value:
            return {key: v for key, v in value.items() if key != "tokenizer_sha256"}
        return [x for v in value.values() if (x := described(v))]
    return [x for v in value if (x := described(v))] if isinstance(value, list) else None


RUNS: dict[str, list[tuple[int, list[str]]]] = {
    "plain": [(0, [])],
    "accumulation": [(2, ["--accum-freq", "2"])],
    "fsdp": [(2, ["--fsdp", "--grad-checkpointing"])],
    "masks": [(0, ["--target-mask-left", "15", "--target-mask-individual", "20", "--squash-mask-left", "--document-mask"])],
    "averagers": [(0, ["--averagers", "ema_0.9_1,poly_2_2", "--z-loss-coefficient", "1e-3", "--wd-on", "all"])],
    "sources": [(2, [*PLANS["mix"], "--data-streams", "8"])],
    "resumed": [(0, ["--epochs", "1", "--lr-scheduler", "const"]), (0, ["--lr-scheduler", "const", "--resume", "latest"])],
    "worlds": [
        (2, ["--epochs", "1", "--lr-scheduler", "const"]),
        (4, ["--fsdp", "--lr-scheduler", "const", "--resume", "latest"]),
        (1, ["--epochs", "3", "--lr-scheduler", "const", "--resume", "latest"]),
    ],
    "head_rotary": [
        (0, ["--model", "head.json", "--val-data", "txt/32-v1/1/shard-0000000.tar", "--val-seq-ci", "--report-to", "tensorboard"])
    ],
}
"""By name, the legs of a run: processes (0: without torchrun), and options beside `flags`."""
MEASURED = re.compile(r"second|memory|mfu|wait|fetched|time|per_s")


def record_runs(shop: Workshop) -> tuple[dict[str, Any], dict[str, str], dict[str, Any]]:
    """Numbers of eight kinds of run, to be compared closely; hashes of the same and of all final tensors, for one machine; names."""
    numbers: dict[str, Any] = {}
    exact: dict[str, str] = {}
    names: dict[str, Any] = {}
    for run, legs in RUNS.items():
        for processes, options in legs:
            data = [] if "--train-data" in options else PLANS["passes"]
            shop.run(*flags(run, *data, *options), processes=processes)
        lines = [json.loads(line) for line in shop.bytes(f"logs/{run}/metrics.jsonl").splitlines()]
        steady = [{k: v for k, v in line.items() if not MEASURED.search(k)} for line in lines]
        numbers[run] = {k: [line.get(k) for line in steady] for k in sorted({k for line in steady for k in line})}
        results = shop.folder / f"logs/{run}/checkpoints/results.jsonl"
        if results.exists():
            told = [one for line in results.read_text().splitlines() for one in json.loads(line)]
            numbers[run]["validation"] = [
                {k: v for k, v in one.items() if isinstance(v, (int, float)) and not MEASURED.search(k)} for one in told
            ]
        exact[run] = digest(json.dumps(numbers[run]), *tensors(shop.folder / f"logs/{run}/checkpoints"))
        names[run] = names_of(shop.folder / "logs" / run)
    return numbers, exact, names


def tensors(folder: Path) -> list[bytes | str]:
    """Of every weights file of a run, names and bytes."""
    found: list[bytes | str] = []
    for path in sorted(folder.glob("*.pt")):
        for name, value in weights(path).items():
            found += [f"{path.name} {name} {tuple(value.shape)} {value.dtype}", value.detach().numpy().tobytes()]
    return found


def weights(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a file by name; none of one without."""
    about = torch.load(path, weights_only=True)
    return about.get("state_dict") or about.get("av_model_sd") or {}


def names_of(folder: Path) -> dict[str, Any]:
    """Files of a run, the keys in them, the shapes of its weights."""
    paths = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    keys = {p.name: sorted(torch.load(p, weights_only=True)) for p in sorted((folder / "checkpoints").glob("*.pt"))}
    last = sorted((folder / "checkpoints").glob("*_2.pt"))
    shapes = {p.name: [f"{n} {v.dtype} {list(v.shape)}" for n, v in weights(p).items()] for p in last}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    results = folder / "checkpoints/results.jsonl"
    told = [one for line in results.read_text().splitlines() for one in json.loads(line)] if results.exists() else []
    return {
        "files": sorted({re.sub(r"events\.out.*", "events", re.sub(r"\d+_\d+-\w+\.distcp", "part", p)) for p in paths}),
        "keys": keys,
        "shapes": shapes,
        "metrics": sorted({k for line in lines for k in line}),
        "results": sorted({k for one in told for k in one}),
        "params": [line.partition(":")[0] for line in (folder / "params.txt").read_text().splitlines()],
        "tensorboard": sorted(tags(folder / "tensorboard")),
    }


def tags(folder: Path) -> set[str]:
    """TensorBoard's scalars."""
    if not folder.is_dir():
        return set()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return set(events.Tags()["scalars"])
