"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def repo() -> Path:
    """The repository's root."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The reference material beside the checkout; tests skip without it, and fail under OPENLM_REQUIRE_SHARED=1."""
    if not (SHARED / "data").is_dir():
        if os.environ.get("OPENLM_REQUIRE_SHARED") == "1":
            pytest.fail(f"OPENLM_REQUIRE_SHARED=1, but {SHARED / 'data'} is absent")
        pytest.skip(f"needs the reference data in {SHARED / 'data'}")
    return SHARED
