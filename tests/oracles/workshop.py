"""What the commands of a checkout make out of a small corpus, as hashes, numbers and names.

Only commands and file formats are used, never modules: so that the same oracles hold for a checkout in which everything was moved.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zstandard

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog;", "été", "naïve", "漢字", "12", "345", "don't\n", "🙂", "नमस्ते"]
SEQ_LEN, VOCAB = 32, 600


def digest(*parts: bytes | str) -> str:
    """16 hex digits of sha256 over the parts."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part.encode() if isinstance(part, str) else part)
        total.update(b"\0")
    return total.hexdigest()[:16]


@dataclass(frozen=True)
class Workshop:
    """A folder to work in, and the checkout whose commands are used."""

    folder: Path
    repo: Path

    def run(self, *command: object, code: int = 0, processes: int = 0) -> str:
        """Standard output of a command: a file of the checkout, or `-m open_lm.main`, under torchrun with `processes`."""
        done = subprocess.run(
            self.argv(*command, processes=processes), cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == code, f"{command}: exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout if code == 0 else done.stdout + done.stderr

    def argv(self, *command: object, processes: int = 0) -> list[str]:
        """The whole command line."""
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes else []
        first, *rest = map(str, command)
        return [sys.executable, *launcher, *([first] if first == "-m" else [str(self.repo / first)]), *rest]

    @property
    def env(self) -> dict[str, str]:
        """Of every command: this checkout alone, one thread, a cache of its own."""
        names = {"PYTHONPATH": str(self.repo), "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(self.folder / "cache")}
        return {**os.environ, **names, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}

    def bytes(self, name: str) -> bytes:
        """Content of a file in the folder."""
        return (self.folder / name).read_bytes()

    def here(self, data: bytes) -> bytes:
        """Without the folder's own path, which some files tell."""
        return data.replace(str(self.folder).encode(), b".")

    def digest_of(self, pattern: str) -> str:
        """Of the names and contents of files; the payloads of json.gz members, whose compression depends on the machine's zlib."""
        paths = sorted(p for p in self.folder.glob(pattern) if p.is_file() and p.suffix != ".png")
        assert paths, pattern
        root = Path(pattern.partition("*")[0]).parts
        return digest(
            *(part for path in paths for part in ("/".join(path.relative_to(self.folder).parts[len(root) :]), self.here(content(path))))
        )


def content(path: Path) -> bytes:
    """What a file holds, without what depends on the moment or the machine."""
    if path.name == "stats.json":
        return json.dumps(steady(json.loads(path.read_bytes())), sort_keys=True).encode()
    if path.suffix != ".tar":
        return path.read_bytes()
    with tarfile.open(path) as tar:
        members = [(m.name, tar.extractfile(m).read()) for m in tar]  # type: ignore[union-attr]
    if not members[0][0].endswith(".gz"):
        return path.read_bytes()
    return json.dumps([(name, gzip.decompress(data).decode()) for name, data in members]).encode()


PASSING = re.compile(r"sha256|second|_per_second|version|command|time|worker|tokenizer|path|file|input|output|engine|machine")


def steady(value: Any) -> Any:
    """The figures of a JSON file, without times, paths, versions."""
    if isinstance(value, dict):
        return {key: steady(v) for key, v in value.items() if not PASSING.search(key)}
    return [steady(v) for v in value] if isinstance(value, list) else value


def texts(count: int, seed: int, words: int = 60) -> list[str]:
    """Documents of 0 to `words` words, every one different."""
    rng = random.Random(seed)
    return [f"{i} " + " ".join(rng.choices(WORDS, k=rng.randrange(words))) for i in range(count)]


def jsonl(rows: Iterable[Any]) -> bytes:
    """One JSON value a line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def make_corpus(shop: Workshop) -> None:
    """Text of three kinds, chats, and a tokenizer's training text."""
    folder = shop.folder / "text"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(jsonl({"text": text} for text in texts(400, 1)))
    (folder / "b.jsonl.zst").write_bytes(zstandard.ZstdCompressor().compress(jsonl({"text": text, "n": 1} for text in texts(300, 2, 200))))
    (folder / "c.txt").write_text("\n".join(texts(50, 3)), encoding="utf-8")
    (folder / "odd.jsonl").write_bytes(jsonl({"text": text} for text in ["", "a\x00b", "twice", "twice", "é" * 300, " \t\n"]))
    rng = random.Random(4)
    chats = [
        {
            "messages": [
                {"role": role, "content": " ".join(rng.choices(WORDS, k=rng.randint(1, 12)))}
                for _ in range(rng.randint(1, 3))
                for role in ("user", "assistant")
            ]
        }
        for _ in range(60)
    ]
    (folder / "chats.jsonl").write_bytes(jsonl(chats))
    (folder / "template.jinja").write_text("{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}")
    for path in folder.iterdir():
        os.utime(path, (1_000_000_000, 1_000_000_000))  # provenance tells when an input was written
    dataset = shop.folder / "dataset/en"
    dataset.mkdir(parents=True)
    for number in range(3):
        (dataset / f"train-{number:05d}.jsonl").write_bytes(
            jsonl({"id": f"{number}-{i}", "text": t} for i, t in enumerate(texts(60, 10 + number)))
        )


def hash_data(shop: Workshop) -> dict[str, str]:
    """Hashes of everything between text and shards."""
    make_corpus(shop)
    found: dict[str, str] = {}
    shop.run("datapreprocess/train_tokenizer.py", "--input-files", "text/a.jsonl", "--output", "tok.json", "--vocab-size", VOCAB)
    found["tokenizer"] = digest(shop.bytes("tok.json"))
    common = ["--input-files", "text/[ab].*", "text/c.txt", "--tokenizer", "tok.json", "--seq-len", SEQ_LEN, "--shard-size", 64]
    make = ["datapreprocess/make_2048.py", *common]
    for name, more in {
        "txt": ["--num-workers", 1, "--num-consumers", 2],
        "npy": ["--num-workers", 1, "--format", "npy"],
        "npy_3_workers": ["--num-workers", 3, "--format", "npy"],
        "json_gz": ["--num-workers", 1, "--format", "json.gz", "--last-sequence", "pad", "--seed", 5],
        "in_order": ["--num-workers", 1, "--format", "npy", "--no-shuffle", "--normalize", "nfc", "--escape-special"],
    }.items():
        shop.run(*make, "--output-dir", name, *more)
        found[f"make_2048.{name}"] = shop.digest_of(f"{name}/**/*")
    kill_and_go_on(shop, *make, "--output-dir", "killed", "--num-workers", 2, "--format", "npy")
    found["make_2048.npy_after_a_kill"] = shop.digest_of("killed/**/*")
    shop.run(
        "datapreprocess/make_instruct.py", "--input-files", "text/chats.jsonl", "--tokenizer", "tok.json", "--output-dir", "chats",
        *("--chat-template", "text/template.jinja", "--seq-len", 128, "--shard-size", 16, "--num-workers", 2),
    )  # fmt: skip
    found["make_instruct"] = shop.digest_of("chats/128-v1/*/*")
    for source, target in (("txt", "npy"), ("npy", "json.gz"), ("json_gz", "txt")):
        out = f"converted_{source}_{target}"
        shop.run(
            "datapreprocess/convert_shards.py",
            "--input-dir",
            f"{source}/{SEQ_LEN}-v1",
            "--output-dir",
            out,
            "--format",
            target,
            "--num-workers",
            2,
        )
        found[f"convert_shards.{source}_{target}"] = shop.digest_of(f"{out}/**/*.tar")
    shop.run(
        "datapreprocess/validate_data.py", "--input-files", "text/odd.jsonl", "text/a.jsonl", "--tokenizer", "tok.json",
        *("--output-csv", "bad.csv", "--list", "all", "--num-workers", 2),
    )  # fmt: skip
    rows = list(csv.reader(shop.bytes("bad.csv").decode().splitlines()))
    found["validate_data"] = digest(json.dumps([[Path(cell).name for cell in row] for row in rows]))
    shop.run(
        "datapreprocess/corpus_stats.py", "--input-files", "text/a.jsonl", "text/b.jsonl.zst", "--tokenizer", "tok.json",
        *("--seq-len", SEQ_LEN, "--output-json", "stats.json", "--num-workers", 1),
    )  # fmt: skip
    found["corpus_stats"] = digest(content(shop.folder / "stats.json"))
    shop.run(
        "datapreprocess/download_dataset.py",
        "--dataset",
        "dataset",
        "--subset",
        "en",
        "--id-key",
        "id",
        "--output-dir",
        "down",
        "--split-fractions",
        "0.8,0.1,0.1",
    )
    parts = sorted((shop.folder / "down").glob("*/*.jsonl.zst"))
    reader = zstandard.ZstdDecompressor()
    found["download_dataset"] = digest(
        *(f"{p.parent.name}/{p.name}" + reader.stream_reader(p.read_bytes(), read_across_frames=True).read().decode() for p in parts)
    )
    return found


def kill_and_go_on(shop: Workshop, *command: object) -> None:
    """Run a command, kill all of it with -9 a moment after it began to work, and run it again to its end."""
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    process = subprocess.Popen(shop.argv(*command), cwd=shop.folder, env=shop.env, **quiet)
    out = shop.folder / str(command[list(command).index("--output-dir") + 1])
    end = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < end and not any(p.is_file() for p in out.parent.glob(f"{out.name}*/**/*")):
        time.sleep(0.005)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    shop.run(*command)
