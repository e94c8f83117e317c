"""What users type and see: every command's flags with their defaults, and how mistakes end."""

from __future__ import annotations

import json
import subprocess
import sys

from workshop import Workshop

COMMANDS = (
    *("open_lm.main", "datapreprocess/make_2048.py", "datapreprocess/make_instruct.py", "datapreprocess/train_tokenizer.py"),
    *("datapreprocess/corpus_stats.py", "datapreprocess/validate_data.py", "datapreprocess/download_dataset.py"),
    *("datapreprocess/convert_shards.py", "eval/eval_openlm_ckpt.py", "eval/compare.py", "eval/download_data.py", "scripts/generate.py"),
    *("scripts/report.py", "scripts/data_report.py", "scripts/inspect_batch.py"),
    *(f"scripts/convert_checkpoint.py {what}" for what in ("inspect", "unshard", "reshard", "export-weights", "average")),
)
_DUMP = """
import argparse, json, runpy, sys
found = []
def record(parser, *_, **__):
    found.extend([action.option_strings or [action.dest], repr(action.default)] for action in parser._actions)
    raise SystemExit
argparse.ArgumentParser.parse_known_args = argparse.ArgumentParser.parse_args = record
command, *more = sys.argv[1].split()
sys.argv = [command, *more]
try:
    runpy.run_path(command, run_name="__main__") if command.endswith(".py") else runpy.run_module(command, run_name="__main__")
except SystemExit:
    pass
print(json.dumps(found))
"""


def flags_of(shop: Workshop) -> dict[str, list[list[str]]]:
    """Of each command its flags: all names of each, and its default."""
    found = {}
    for command in COMMANDS:
        file = str(shop.repo / command) if ".py" in command else command
        done = subprocess.run([sys.executable, "-c", _DUMP, file], cwd=shop.repo, env=shop.env, capture_output=True, text=True, check=True)
        found[command] = sorted([*names, default] for names, default in json.loads(done.stdout.splitlines()[-1]))
    return found
