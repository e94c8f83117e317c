"""The README's commands, read from the README and run in a copy of the repository.

What a machine without GPUs, S3 and a login can't do is replaced by something smaller, listed in `SMALLER`; the rest runs as written.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.slow

SMALLER = {
    "--nproc-per-node 4": "--nproc-per-node 2",
    "open_lm_3b --train-data": "tiny.json --train-data",
    '"/preproc_data/shard-{0000000..0000099}.tar"': '"preproc_data/2048-v1/0/shard-{0000000..0000000}.tar"',
    "--train-num-samples 1000000000": "--train-num-samples 16384",
    "--epochs 100": "--epochs 2",
    "--batch-size 8": "--batch-size 2",
    "../open_lm/model_configs/open_lm_3b.json": "../tiny.json",
    "/path/to/openlm_checkpoint.pt": "../path/to/logs/open_lm_ex_1/checkpoints/epoch_2.pt",
    "--num-samples 3": "--num-samples 2 --max-new-tokens 5",
    "download_data.py --eval-yaml eval/openlm_table.yaml": "download_data.py --eval-yaml eval/openlm_table.yaml --mirror mirror",
    "--tasks arc_easy,hellaswag": "--tasks mine --include-path mine",
    '"preproc_data/val/*.tar"': '"preproc_data/2048-v1/0/*.tar" --val-num-samples 8192 --precision fp32',
}
ELSEWHERE = {"scripts/quickstart.sh": "tests/commands/test_quickstart.py", "scripts/test.sh": "this very run"}


def blocks(readme: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", readme, re.DOTALL)


@pytest.fixture(scope="module")
def sandbox(repo: Path, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with raw data, a tiny model, task data, and the default tokenizer as if the hub had been asked before."""
    root = tmp_path_factory.mktemp("readme") / "OpenLM"
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=repo, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if (repo / name).exists():
            shutil.copy2(repo / name, root / name, follow_symlinks=False)
    (root / "raw_data").mkdir()
    shutil.copy(shared / "data/text/tinyshakespeare.jsonl.zst", root / "raw_data/part.jsonl.zst")
    config = {"hidden_dim": 16, "n_layers": 1, "n_heads": 2, "seq_len": 2048, "vocab_size": 50432}
    (root / "tiny.json").write_text(json.dumps(config))
    make_task_data(root / "eval/in_memory_hf_eval.yaml", root / "eval")
    make_task_data(root / "eval/openlm_table.yaml", root / "mirror")
    make_harness_task(root / "mine")
    for name in ("gpt-neox-20b", "pythia-160m"):
        snapshot = root / f"hub/hub/models--EleutherAI--{name}/snapshots/0123456789"
        snapshot.mkdir(parents=True)
        shutil.copy(shared / "data/tokenizers/20B_tokenizer.json", snapshot / "tokenizer.json")
        (snapshot / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
        (snapshot.parents[1] / "refs").mkdir()
        (snapshot.parents[1] / "refs/main").write_text(snapshot.name)
    make_stock_model(snapshot)
    return root


def make_stock_model(folder: Path) -> None:
    """Of Pythia's class, as if the hub had been asked before."""
    import transformers

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    config = transformers.GPTNeoXConfig(vocab_size=50432, max_position_embeddings=2048, **sizes)
    transformers.GPTNeoXForCausalLM(config).save_pretrained(folder)


def make_harness_task(folder: Path) -> None:
    """A task of lm-evaluation-harness's kind: its own want the hub."""
    folder.mkdir()
    (folder / "rows.json").write_text(json.dumps({"q": "one two", "choices": ["three", "four"], "gold": 0}))
    task = {"task": "mine", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / "rows.json")}}}
    task |= {"output_type": "multiple_choice", "test_split": "test", "metric_list": [{"metric": "acc"}]}
    task |= {"doc_to_text": "{{q}}", "doc_to_target": "gold", "doc_to_choice": "choices"}
    (folder / "mine.yaml").write_text(yaml.dump(task))


def make_task_data(tasks: Path, folder: Path) -> None:
    """Four questions for each task of a YAML."""
    rows: dict[str, dict[str, Any]] = {
        "multiple_choice": {"query": "one two", "choices": ["three", "four"], "gold": 0},
        "schema": {"context_options": ["the cat", "the dog"], "continuation": "barks", "gold": 1},
        "language_modeling": {"context": "one two", "continuation": "three"},
        "generation_task_with_answers": {"context": "one two", "answer": "three", "aliases": ["3"]},
    }
    for task in yaml.safe_load(tasks.read_text())["icl_tasks"]:
        path = folder / task["dataset_uri"]
        path.parent.mkdir(parents=True, exist_ok=True)
        shots = max([0, *task["num_fewshot"]])
        path.write_text((json.dumps({**rows[task["icl_task_type"]], "category": "all"}) + "\n") * (4 + shots))


def run(sandbox: Path, command: str) -> str:
    for long, short in SMALLER.items():
        command = command.replace(long, short)
    binaries = str(Path(sys.executable).parent)
    environment = {
        **{name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        **{"PATH": f"{binaries}:{os.environ['PATH']}", "HF_HOME": str(sandbox / "hub"), "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"},
        **{"OMP_NUM_THREADS": "1"},
    }
    done = subprocess.run(["bash", "-euc", command], cwd=sandbox, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_every_command_of_the_readme_runs(sandbox: Path, repo: Path) -> None:
    readme = (repo / "README.md").read_text()
    commands = [block for block in blocks(readme, "bash") if block.strip() not in ELSEWHERE]
    assert len(commands) == 6
    outputs = [run(sandbox, command) for command in commands]
    assert (sandbox / "preproc_data/2048-v1/0/manifest.jsonl").is_file()
    run_folder = sandbox / "path/to/logs/open_lm_ex_1"
    assert (run_folder / "checkpoints/epoch_2.pt").is_file()
    assert list((run_folder / "wandb").glob("offline-run-*"))
    assert "lambada" in outputs[3]
    assert "report.html" in {p.name for p in sandbox.iterdir()}
    assert {"triviaqa/0-shot", "mmlu/5-shot/all"} <= set(json.loads((sandbox / "table.json").read_text())["path/to/logs/open_lm_ex_1"])
    assert (sandbox / "table.png").is_file()
    for words in ("OpenLM-1B", "pythia-160m", "mine/0-shot"):
        assert words in outputs[4]
    assert outputs[4].count("| winograd/0-shot") == 3  # native, with a stock model, on LLM Foundry's evaluators
    [validated] = json.loads((sandbox / "logs/ex_1_val/checkpoints/results.jsonl").read_text())
    assert validated["loss_sequences_lower_95"] < validated["loss"] < validated["loss_sequences_upper_95"]
    assert "part.jsonl.zst, byte" in outputs[5]

    again = run(sandbox, commands[2])
    assert "the run is finished" in again

    [code] = blocks(readme, "python")
    lines = code.replace("input_ids)", "torch.zeros(1, 3, dtype=torch.int64))")
    (sandbox / "readme.py").write_text(f"import torch\n{lines}\nassert logits.shape == (1, 3, 50432)\nassert tokenizer.eot_id == 0\n")
    run(sandbox, "PYTHONPATH=. python readme.py")


def test_every_replacement_still_occurs_in_the_readme(repo: Path) -> None:
    readme = (repo / "README.md").read_text()
    assert [long for long in SMALLER if long not in readme] == []


def test_the_readme_links_every_page(repo: Path) -> None:
    readme = (repo / "README.md").read_text()
    assert [page.name for page in (repo / "docs").glob("*.md") if f"(docs/{page.name})" not in readme.partition("## More")[2]] == []


def test_the_table_of_sizes_is_true(repo: Path) -> None:
    import torch

    from open_lm.model.transformer import Transformer, count_parameters
    from open_lm.model.zoo import get_model_config, named_models

    told: dict[str, str] = {}
    for names, rest in re.findall(r"^\| (`open_lm[^|]*)\|(.*)\|$", (repo / "README.md").read_text(), re.MULTILINE):
        told |= dict.fromkeys(re.findall(r"`(open_lm_\w+)`", names), rest)
    assert set(told) == set(named_models())
    for name, rest in told.items():
        config = get_model_config(name)
        with torch.device("meta"):
            parameters = count_parameters(Transformer(config))
        numbers = [int(n.replace(",", "")) for n in rest.split("|")]
        assert numbers == [config.hidden_dim, config.n_layers, config.n_heads, parameters], name
