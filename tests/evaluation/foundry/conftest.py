"""What LLM Foundry's own environment has to hold: under OPENLM_REQUIRE_FOUNDRY=inside nothing is skipped for want of it."""

from __future__ import annotations

import os

import pytest

from open_lm.evaluation.foundry import environment

if os.environ.get("OPENLM_REQUIRE_FOUNDRY") == "inside" and not environment.inside():
    raise pytest.UsageError("OPENLM_REQUIRE_FOUNDRY=inside, but LLM Foundry is not installed here: scripts/setup.sh foundry")
