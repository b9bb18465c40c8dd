"""`python -m tests.torture [--quick] [--only kills,…]`: every part, counted in `torture.json`."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from tests.torture import commands, corruptions, inputs, kills, soak, stale

PARTS = {
    "kills": (kills.run, 200),
    "long": (kills.long, 20),  # not of a twentieth: each takes minutes
    "corruptions": (corruptions.run, 500),
    "stale": (stale.run, 100),
    "inputs": (inputs.run, 10_000),
    "commands": (commands.run, 2_000),
    "soak": (soak.run, 1800),  # seconds
}
QUICK = 20  # times less of everything
GROWTH = 2**25  # bytes that a soak's resident memory may grow by, as an allocator's pools do


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="A twentieth of everything.")
    parser.add_argument("--only", help=f"Parts, by comma: {', '.join(PARTS)}.")
    parser.add_argument("--count", type=int, help="So many of everything instead.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("torture.json"))
    asked = parser.parse_args()
    found: dict[str, Any] = {}
    if asked.out.is_file():
        found = json.loads(asked.out.read_text())
    every = [name for name in PARTS if name != "long" or not asked.quick]
    for name in every if asked.only is None else asked.only.split(","):
        run, count = PARTS[name]
        start = time.monotonic()
        count = asked.count or (count // QUICK if asked.quick else count)
        told = run(max(1, count), asked.seed)
        found |= told
        print(f"{name}: {told} ({time.monotonic() - start:.0f} s)", flush=True)
        asked.out.write_text(json.dumps(found, indent=2) + "\n")
    return 0 if _good(found) else 1


def _good(found: dict[str, Any]) -> bool:
    pairs = (
        ("kills", "kills_identical"),
        ("long_kills", "long_kills_identical"),
        ("inputs", "inputs_clear"),
        ("commands", "commands_clear"),
        ("corruptions", "corruptions_detected"),
        ("stale", "stale_detected"),
    )
    return (
        not (found.get("orphans") or found.get("long_orphans"))
        and found.get("soak_rss_growth_bytes", 0) < GROWTH
        and all(found.get(a) == found.get(b) for a, b in pairs)
    )


if __name__ == "__main__":
    raise SystemExit(main())
