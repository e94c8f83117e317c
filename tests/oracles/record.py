"""What a checkout makes, as one JSON: `python tests/oracles/record.py [--repo CHECKOUT] OUT.json` records, `--against OTHER` compares.

Two checkouts on one machine must agree in all of it, to the bit: record one with the commands of the other by `--repo`, then
`record.py --against old.json new.json`. What is committed (`expected.json`) is compared by `test_oracles.py` on every machine.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from names import flags_of
from runs import hash_plans, make_models, record_runs
from workshop import Workshop, hash_data


def record(shop: Workshop) -> dict[str, Any]:
    """Hashes of whole numbers; numbers of runs; hashes of the same and of weights, for one machine; names."""
    make_models(shop)
    hashes = hash_data(shop) | hash_plans(shop)
    numbers, exact, names = record_runs(shop)
    return {"hashes": hashes, "numbers": numbers, "exact": exact, "names": names, "flags": flags_of(shop)}


def differences(old: Any, new: Any, name: str = "", relative: float = 0.0) -> list[str]:
    """Where two records differ; numbers by more than a share of the larger one."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [d for k in sorted({*old, *new}) for d in differences(old.get(k), new.get(k), f"{name}/{k}", relative)]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [d for i, (a, b) in enumerate(zip(old, new)) for d in differences(a, b, f"{name}/{i}", relative)]
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in (old, new))
    if old == new or (numbers and abs(old - new) <= relative * max(abs(old), abs(new))):
        return []
    return [f"{name}: {old!r} -> {new!r}"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--repo", type=Path, default=Path(__file__).resolve().parents[2])
    parser.add_argument("--against", type=Path)
    asked = parser.parse_args()
    if asked.against:
        found = differences(*(json.loads(path.read_text()) for path in (asked.against, asked.out)))
        print("\n".join(found) or "equal")
        return 1 if found else 0
    with tempfile.TemporaryDirectory() as folder:
        made = record(Workshop(Path(folder), asked.repo.resolve()))
    asked.out.write_text(json.dumps(made, indent=1, sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
