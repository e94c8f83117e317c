"""Imported by the fork server before it forks a worker: loads the tokenizer named in the environment, so that workers share its memory."""

from __future__ import annotations

import json
import os

from open_lm.tokens.unit import EncoderWork, encoder_for

VARIABLE = "OPENLM_WARM_ENCODER"

if VARIABLE in os.environ:
    encoder_for(EncoderWork(**json.loads(os.environ[VARIABLE])))
