"""The commands of docs/, each read from its page and run in this process, in a folder that has what the pages speak of, on a small scale.

A command that neither runs here nor stands in `NOT_HERE` with a reason fails the test, and so does an entry that no page has any more.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from test_readme import make_harness_task, make_task_data

from open_lm.tokenizer import Tokenizer

pytestmark = pytest.mark.slow

PAGES = ("preprocessing", "instruction_data", "training", "data", "evaluation", "benchmarks", "architecture")
"""In the order in which one makes what the next needs."""
NOT_HERE = {
    "#SBATCH": "Slurm",
    "--backend llm-foundry": "needs LLM Foundry's environment; the README's test runs that backend",
    "--hf-model EleutherAI/pythia-160m": "needs the hub; the README's test runs the same with what the hub would give",
    "scripts/setup.sh foundry": "7 GB; scripts/test.sh runs it",
    "scripts/bench/preprocess.py": "minutes; tests/commands/test_bench_preprocess.py",
    "torchrun --max-restarts N": "part of a command; tests/train/test_restarts.py",
}
BARE = {
    "python datapreprocess/convert_shards.py": "tests/shards/test_convert_shards.py",
    "python datapreprocess/corpus_stats.py": "tests/tokens/test_corpus_stats.py",
    "python datapreprocess/validate_data.py": "tests/tokens/test_validate_data.py",
    "python datapreprocess/train_tokenizer.py": "tests/tokens/test_tokenizer_training.py",
    "python datapreprocess/download_dataset.py": "tests/tokens/test_download_dataset.py",
    "python -m open_lm.main": "tests/train/test_run.py",
}
"""Commands without arguments, which pages name; and where they are tested."""
SMALLER = {
    "--num-workers 32": "--num-workers 1 --tokenizer my_tokenizer",
    "--output-dir out": "--output-dir out --num-workers 1 --tokenizer my_tokenizer",
    "--num-workers 8": "--num-workers 1 --seq-len 2048",
    "--document-mask ...": "--document-mask --train-num-samples 8192 --epochs 1 --batch-size 1 --precision fp32 --workers 0 --name chats",
    "200GB ...": "1GB --model tiny.json --train-num-samples 2048 --epochs 1 --batch-size 1 --precision fp32 --workers 0 --name cached",
    "--train-num-samples 51200": "--train-num-samples 4096",
    "--warmup 5": "--warmup 1",
    "--step 1234": "--step 2",
    "--step N": "--step 1",
    "1234)": "2)",
    "order(1, 101)": "order(1, 3)",
    "logs/NAME": "logs/a",
    "logs/my_chats": "logs/chats",
    "FOLDER": "more",
    "--checkpoint open_lm_1b.pt --model open_lm_1b --rotary-old": (
        "--checkpoint small_lm.pt --model-config small_lm.json --tokenizer 20B_tokenizer.json"
    ),
    "openlm_table.yaml --checkpoint ../logs/my_run": "light.yaml --checkpoint ../logs/a",
    "openlm_table.yaml          #": "light.yaml --mirror ../mirror #",
    "--eval-yaml openlm_table.yaml": "--eval-yaml light.yaml",
    "--limit 100": "--limit 2",
    "--val-iter-ci 1000": "--val-iter-ci 10",
    "--val-num-samples 16384": "--val-num-samples 1024",
    "before.json after.json": "both.json eval/small.json",
    "weights/small_lm-7dc4d402.pt": "weights/small_lm.pt",
}
WRONG = "half.pt"
"""Of the one command that is a mistake."""
FIRST = ("--name small", "manifest s3://")
"""What makes files that commands further up have."""
TOKENS = 300


def blocks(page: str) -> Iterator[tuple[str, str]]:
    """(language, text) of what a page has to run, in its order: blocks, and commands in the middle of a line."""
    fenced = r"^```(?P<language>bash|python|)\n(?P<block>.*?)^```$"
    inline = r"`(?P<inline>(?:python|torchrun|zcat|(?:scripts|eval|datapreprocess)/\w+\.(?:py|sh)) [^`\n]+)`"
    listed = r"^\| `(?P<listed>python datapreprocess/\w+\.py)` \|"
    for match in re.finditer(f"{fenced}|{listed}|{inline}", page, re.DOTALL | re.MULTILINE):
        found = match.groupdict()
        if found["block"] is None:
            yield "bash", (found["inline"] or found["listed"]).replace("\\|", "|")
        elif found["language"] or found["block"].startswith("python "):
            yield found["language"] or "bash", found["block"]


def commands(repo: Path) -> list[tuple[str, str]]:
    """All that there is to run, (language, text), one line of a shell each."""
    found = []
    for name in PAGES:
        for language, text in blocks((repo / f"docs/{name}.md").read_text()):
            if language == "python" or "#SBATCH" in text:
                found.append((language, text))
            else:
                lines = text.replace("\\\n", " ").splitlines()
                found += [(language, f"python {line}" if re.match(r"\w+/\w+\.py", line) else line) for line in lines if line.strip()]
    return found


def reason(command: str) -> str | None:
    """Why a command isn't run, None for one that is."""
    return BARE.get(command) or next((why for part, why in NOT_HERE.items() if part in command), None)


def test_the_pages_are_all_read_and_the_tables_have_nothing_that_they_lack(repo: Path) -> None:
    assert {path.stem for path in (repo / "docs").glob("*.md")} == set(PAGES)
    texts = [text for _, text in commands(repo)]
    assert [key for key in (*NOT_HERE, *SMALLER, WRONG) if not any(key in text for text in texts)] == [] and set(BARE) <= set(texts)
    assert all((repo / place).is_file() for place in BARE.values())
    assert len(texts) > 35


def test_every_flag_of_the_pages_is_one(repo: Path) -> None:
    sources = [path.read_text() for name in ("open_lm", "scripts", "eval", "datapreprocess") for path in (repo / name).rglob("*.py")]
    fields = {name.replace("_", "-") for text in sources for name in re.findall(r"^    (\w+): [^=\n]+ = ", text, re.MULTILINE)}
    known = {*fields, *(name for text in sources for name in re.findall(r'"--([a-z][\w-]*)"', text)), "target-mask-"}
    known |= {"max-restarts", "nproc-per-node", "standalone", "logs-specs"} | {"signal"} | {"fast"}  # torchrun, sbatch, scripts/test.sh
    for page in [*(repo / "docs").glob("*.md"), repo / "README.md"]:
        flags = set(re.findall(r"(?<![\w-])--(?:no-)?([a-z][a-z0-9-]*)", page.read_text()))
        assert flags <= known | {flag.removeprefix("no-") for flag in known}, (page.name, flags - known)


@pytest.fixture
def folder(repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The scripts, text, tokenizer, models and task data that the pages speak of."""
    for name in ("scripts", "eval", "datapreprocess"):
        shutil.copytree(repo / name, tmp_path / name, ignore=shutil.ignore_patterns("bench", "__pycache__", "local_data"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    torch.set_num_threads(1)
    tokenizer = make_tokenizer()
    for name in ("my_tokenizer/tokenizer.json", "20B_tokenizer.json", "eval/20B_tokenizer.json"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(tokenizer.json_text)
    make_text(tmp_path)
    for name, seq_len in (("tiny.json", 256), ("my_model.json", 2048), ("eval/small_lm.json", 256), ("eval/model_config.json", 256)):
        config = {"hidden_dim": 16, "n_layers": 1, "n_heads": 2, "seq_len": seq_len, "vocab_size": TOKENS}
        Path(name).write_text(json.dumps(config))
    tasks = yaml.safe_load(Path("eval/light.yaml").read_text())["icl_tasks"][:2]
    Path("quick.yaml").write_text(yaml.dump({"icl_tasks": [{**task, "dataset_uri": f"eval/{task['dataset_uri']}"} for task in tasks]}))
    shutil.copy("quick.yaml", "eval/golden.yaml")
    make_task_data(Path("quick.yaml"), tmp_path)
    make_task_data(Path("eval/light.yaml"), tmp_path / "mirror")
    make_harness_task(tmp_path / "mine")
    Path("mine/mine.yaml").write_text(Path("mine/mine.yaml").read_text().replace("task: mine", "task: my_arc_easy"))
    return tmp_path


def make_tokenizer() -> Tokenizer:
    import tokenizers

    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator([], tokenizers.trainers.BpeTrainer(initial_alphabet=alphabet, special_tokens=["<|endoftext|>"]))
    return Tokenizer(backend.to_str(), "bytes")


def make_text(folder: Path) -> None:
    """Lines of text and of instructions."""
    import zstandard

    texts = [json.dumps({"text": f"{number} and {number * number} " * 40}) for number in range(120)]
    pairs = [json.dumps({"prompt": f"What follows {number}? ", "response": f"{number + 1} " * 60}) for number in range(120)]
    for name, lines in (("raw_data/part", texts), ("chats/part", pairs)):
        (folder / name).parent.mkdir()
        (folder / f"{name}.jsonl.zst").write_bytes(zstandard.compress("\n".join(lines).encode()))
    with gzip.open(folder / "logs.gz", "wt") as file:
        file.write("\n".join(texts))


def make_runs(run: Callable[[str], int]) -> None:
    """The run that the pages call NAME or a, and files of weights."""
    text = (
        "python datapreprocess/make_2048.py --input-files raw_data --output-dir data --num-workers 1 --tokenizer my_tokenizer --seq-len 256"
    )
    assert run(text) == 0
    flags = "--model tiny.json --train-data data/256-v1/0/manifest.jsonl --train-num-samples 2560 --epochs 3 --batch-size 1 --warmup 2"
    assert run(f"python -m open_lm.main {flags} --workers 0 --precision fp32 --log-every-n-steps 1 --name a") == 0
    weights = torch.load("logs/a/checkpoints/epoch_3.pt", weights_only=True)["state_dict"]
    for name in ("eval/small_lm.pt", "eval/epoch_1.pt"):
        torch.save({"epoch": 1, "name": "x", "state_dict": weights}, name)
    Path("weights").mkdir()
    shutil.copy("logs/a/checkpoints/epoch_3.pt", "weights/small_lm.pt")
    Path("half.pt").write_bytes(Path("eval/small_lm.pt").read_bytes()[:1000])
    Path("more").mkdir()
    shutil.copy("data/256-v1/0/shard-0000000.tar", "more/shard-0000000.tar")
    make_llama(Path("eval/tiny-llama"))


def make_llama(folder: Path) -> None:
    import transformers

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=TOKENS, **sizes)).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(make_tokenizer().json_text)


def test_every_command_of_the_pages_runs(repo: Path, folder: Path, s3: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def run(line: str) -> int:
        """Exit code of Python with a script or module, in this process; of a pipe in a shell."""
        if "|" in line:
            environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(repo)}
            return subprocess.run(["bash", "-euc", line], env={**os.environ, **environment}, check=False).returncode
        words = shlex.split(line, comments=True)
        assert words[0] == "python", line
        monkeypatch.setattr("sys.argv", words[2:] if words[1] == "-m" else words[1:])
        try:
            if words[1] == "-m":
                runpy.run_module(words[2], run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(words[1], run_name="__main__")
        except SystemExit as ended:
            return int(ended.code or 0)
        return 0

    failed: list[str] = []
    names: dict[str, Any] = {}
    make_runs(run)
    for number in range(4):
        for name in ("shard-0000000.tar", "manifest.jsonl")[: 2 if number else 1]:
            s3.put(f"data/{number}/{name}", Path("data/256-v1/0", name).read_bytes())
    for language, text in sorted(commands(repo), key=lambda one: not any(part in one[1] for part in FIRST)):
        if reason(text):
            continue
        for long, short in SMALLER.items():
            text = text.replace(long, short)
        text = text.replace("s3://bucket/", s3.url(""))
        if text == "cd eval":  # some of the pages' blocks go on in that folder without saying so
            continue
        monkeypatch.chdir(folder / "eval" if text.startswith(("python eval_openlm", "python download_data")) else folder)
        if language == "python":
            exec(compile(text, "docs", "exec"), names)  # a block may go on from one before it
            continue
        capsys.readouterr()
        code = run(text)
        told = capsys.readouterr()
        if code != (2 if WRONG in text else 0) or (WRONG in text and told.err not in (repo / "docs/evaluation.md").read_text()):
            failed.append(f"{text}: {code}\n{told.out[-2000:]}\n{told.err[-2000:]}")
    assert not failed, "\n".join(failed)
