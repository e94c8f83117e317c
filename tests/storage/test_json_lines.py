"""Files of one JSON value a line: strict, and without what a resumed run makes again."""

from __future__ import annotations

import json
import math
from pathlib import Path

from open_lm.storage.json_lines import add_line, drop_after, read_lines


def test_numbers_that_are_not_finite_are_null(tmp_path: Path) -> None:
    add_line(tmp_path / "a", {"x": [math.nan, 1.5], "y": {"z": (math.inf, "nan")}})
    assert json.loads((tmp_path / "a").read_text()) == {"x": [None, 1.5], "y": {"z": [None, "nan"]}}


def test_later_steps_and_what_is_no_json_go_and_the_rest_stays(tmp_path: Path) -> None:
    path = tmp_path / "a"
    lines = ['{"step": 1}', '[{"step": 2}, {"step": 2}]', "{torn", '{"other": 1}', "[]", '{"step": 3}', '{"step": 2}']
    path.write_text("\n".join(lines))  # the last line has no end
    drop_after(path, 2)
    assert read_lines(path) == [{"step": 1}, [{"step": 2}, {"step": 2}], {"other": 1}, []]
    before = path.stat()
    drop_after(path, 2)
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    drop_after(tmp_path / "none", 2)
    assert read_lines(tmp_path / "none") == []
