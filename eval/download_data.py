#!/usr/bin/env python
"""The data of the task files into eval/local_data, as LLM Foundry lays it out. The work is in open_lm/evaluation/download.py.

python eval/download_data.py                             # from LLM Foundry's repository, for all task files here
python eval/download_data.py --mirror /data/llm-foundry/scripts/eval --eval-yaml eval/openlm_table.yaml
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from open_lm.command_line import end_on_signals  # noqa: E402

end_on_signals(__name__)

from open_lm import storage  # noqa: E402
from open_lm.evaluation.download import FOLDER, REVISION, GitHub, Mirror, Report, download, wanted_files  # noqa: E402
from open_lm.params.fields import Problems, counted, parse_topics  # noqa: E402
from open_lm.progress import say  # noqa: E402

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class DownloadParams:
    """download"""

    eval_yaml: tuple[str, ...] = ()
    """Task files whose data are wanted. Default: all that lie beside this script."""
    output_dir: str | None = None
    """Folder that gets local_data/. Default: that of this script, where its task files look."""
    mirror: str | None = None
    """Folder or URL to take the files from instead, such as scripts/eval of a checkout of LLM Foundry."""
    revision: str = REVISION
    """Tag, branch or commit of LLM Foundry's repository."""


def main() -> int:
    """Exit status 0; 2 with the problems on stderr; 1 where files are missing or couldn't be fetched."""
    try:
        topics, _ = parse_topics((DownloadParams,), prog="download_data.py", description=__doc__)
        params: DownloadParams = topics[DownloadParams]
        problems, folder = Problems(), Path(params.output_dir) if params.output_dir else HERE
        problems.found += storage.unwritable("--output-dir", str(folder / FOLDER), folder=True)
        names = problems.attempt(wanted_files, params.eval_yaml or [str(path) for path in sorted(HERE.glob("*.yaml"))])
        problems.raise_any()
        assert names is not None
        mirror, revision = params.mirror, params.revision
        report = download(names, folder, lambda: Mirror(mirror) if mirror else GitHub(revision), say)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return _tell(report, folder)


def _tell(report: Report, folder: Path) -> int:
    print(f"{folder / 'local_data'}: {counted(len(report.there), 'file')} there before, {len(report.fetched)} fetched")
    for name in report.missing:
        print(f"missing: {name} (the source hasn't it; leave its task out, or put the file there)", file=sys.stderr)
    for name, reason in report.failed.items():
        print(f"not fetched: {name}: {reason}", file=sys.stderr)
    return 1 if report.missing or report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
