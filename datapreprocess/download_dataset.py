#!/usr/bin/env python
"""A dataset of the Hugging Face hub to jsonl.zst files for training, validation, test. The work is in open_lm/tokens/tools/download.py.

python datapreprocess/download_dataset.py --dataset wikimedia/wikipedia --subset 20231101.en --id-key id --output-dir wikipedia
python datapreprocess/make_2048.py --input-files wikipedia/train --output-dir preproc_data

The same command, given again, goes on where a stopped one was. A private dataset needs HF_TOKEN; HF_ENDPOINT names another hub.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

sys.path[0] = str(Path(__file__).resolve().parents[1])

from open_lm.command_line import end_on_signals  # noqa: E402

end_on_signals(__name__, "; the same command goes on from here")

from open_lm import storage  # noqa: E402
from open_lm.params.fields import Problems, counted, parse_topics  # noqa: E402

if TYPE_CHECKING:
    from open_lm.tokens.tools.download import Written


@dataclass(frozen=True)
class DatasetParams:
    """dataset"""

    dataset: str | None = None
    """Its name on the hub, such as wikimedia/wikipedia; or a folder or URL with .parquet, .jsonl, .json or .txt files (.zst, .gz)."""
    subset: str | None = None
    """The subset (configuration), such as 20231101.en. Default: the only or the default one."""
    split: str = "train"
    """The dataset's own split to take documents from."""
    revision: str | None = None
    """Branch, tag or commit on the hub. Default: main."""
    files: tuple[str, ...] = ()
    """Instead of subset and split: files inside the dataset, such as data/*.parquet."""
    text_key: str = "text"
    """The text's column or field; dots lead into nested ones, as in data.text."""
    id_key: str | None = None
    """The id's column or field. Without it, documents are written without ids and split by a hash of the text."""


@dataclass(frozen=True)
class OutputParams:
    """output"""

    output_dir: str | None = None
    """Folder for train/, val/ and test/ with files 00000.jsonl.zst and on."""
    split_fractions: str = "0.98,0.01,0.01"
    """Shares of train, val and test. A document's side depends on its id (or text) alone."""
    max_documents: int | None = None
    """Take the first so many documents; they are then read by one process."""
    num_files: int | None = None
    """Output files of each split. Default: one for each file of the dataset."""
    num_workers: int | None = None
    """Processes. Default: all cores."""
    overwrite: bool = False
    """Replace another download in the output folder."""


def main() -> int:
    """Exit status 0; 2 with the problems on stderr; 1 when network or disk fail, or a worker died: the same command goes on then."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s | %(levelname)s | %(message)s", datefmt="%Y-%m-%d,%H:%M:%S")
    for name in ("httpx", "httpx2", "huggingface_hub"):  # they would name every request
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        topics, _ = parse_topics((DatasetParams, OutputParams), prog="download_dataset.py", description=__doc__)
        _run(topics[DatasetParams], topics[OutputParams])
    except ValueError as error:
        print(str(error).replace("--input-files ", "--dataset ", 1), file=sys.stderr)
        return 2
    except (OSError, RuntimeError) as error:
        print(str(error).replace("--input-files ", "--dataset ", 1), file=sys.stderr)
        return 1
    return 0


def _run(dataset: DatasetParams, output: OutputParams) -> None:
    fractions = _check(dataset, output)
    from open_lm.executor import LocalExecutor, available_cores
    from open_lm.tokens.tools.download import Wanted, download
    from open_lm.tokens.tools.hub_listing import dataset_files, dataset_folder

    assert dataset.dataset and output.output_dir
    folder = dataset_folder(dataset.dataset, dataset.revision)
    files = dataset_files(folder, dataset.subset, dataset.split, dataset.files)
    logging.info("%s: %s, %.1f MB", folder, counted(len(files), "file"), sum(file.size for file in files) / 1e6)
    wanted = Wanted(dataset.text_key, dataset.id_key, fractions, output.max_documents, output.num_files or len(files))
    source = {"dataset": folder, "subset": dataset.subset, "split": dataset.split}
    with LocalExecutor(min(output.num_workers or available_cores(), wanted.num_files)) as executor:
        written = download(files, output.output_dir, wanted, source, executor, output.overwrite)
    _report(written, output.output_dir)


def _check(dataset: DatasetParams, output: OutputParams) -> tuple[float, ...]:
    """The shares of the splits. Raises UserError with every option that can't be."""
    from open_lm.tokens.tools.split import parse_fractions

    problems = Problems()
    fractions = problems.attempt(parse_fractions, output.split_fractions)
    if not dataset.dataset:
        problems.found.append("--dataset: missing; give a name on the hub such as wikimedia/wikipedia, a folder or a URL")
    if not output.output_dir:
        problems.found.append("--output-dir: missing; give a folder")
    problems.found += storage.unwritable("--output-dir", output.output_dir, folder=True)
    for flag, key in (("--text-key", dataset.text_key), ("--id-key", dataset.id_key)):
        if key is not None and not all(key.split(".")):
            problems.found.append(f"{flag} {key!r}: give the name of a field, such as text")
    for flag, value in (
        ("--max-documents", output.max_documents),
        ("--num-files", output.num_files),
        ("--num-workers", output.num_workers),
    ):
        if value is not None and value < 1:
            problems.found.append(f"{flag} {value}: give 1 or more")
    problems.raise_any()
    assert fractions is not None
    return fractions


def _report(written: Written, folder: str) -> None:
    for name, documents in written.documents.items():
        print(f"{Path(folder) / name}: {counted(documents, 'document')}, {written.utf8_bytes[name]:,} bytes of text")
    if written.refused:
        print(f"left out: {counted(written.refused, 'document')} without a text or an id")
        for refusal in written.refusals:
            logging.warning("left out: %s", refusal)


if __name__ == "__main__":
    sys.exit(main())
