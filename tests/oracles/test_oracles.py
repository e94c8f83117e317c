"""What must never change: bytes of shards, orders of data, numbers of runs, names. `expected.json` changes only with a reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from names import flags_of
from record import differences
from runs import hash_plans, make_models, record_runs
from workshop import Workshop, hash_data

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def expected() -> Any:
    return json.loads((Path(__file__).parent / "expected.json").read_text())


@pytest.fixture(scope="module")
def shop(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    made = Workshop(tmp_path_factory.mktemp("oracles"), repo)
    make_models(made)
    return made


def test_text_becomes_the_same_shards_and_a_plan_the_same_order(shop: Workshop, expected: Any) -> None:
    found = hash_data(shop) | hash_plans(shop)
    assert differences(expected["hashes"], found) == []
    assert found["make_2048.npy"] == found["make_2048.npy_3_workers"] == found["make_2048.npy_after_a_kill"]


def test_runs_have_the_same_numbers_and_names(shop: Workshop, expected: Any) -> None:
    numbers, _, names = record_runs(shop)
    assert differences(expected["numbers"], numbers, relative=1e-5) == []
    assert differences(expected["names"], names) == []


def test_flags_keep_their_names_and_defaults(shop: Workshop, expected: Any) -> None:
    found = flags_of(shop)
    for command, flags in expected["flags"].items():
        gone = [flag for flag in flags if not any({*flag} <= {*now} for now in found[command])]
        assert gone == [], f"{command} lost or changed {gone}"
