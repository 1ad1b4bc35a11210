"""From measurements to dispatch: `python -m vmae.kernels.evidence RESULT.json ...`.

Writes `results/evidence.json`. For every op and measured size, the Triton kernel is chosen where its median
beats by `MARGIN` the best of what the torch path could be (eager, compiled, SDPA for attention); the torch
path otherwise. A size range reaches from each measured size half-way to its neighbours.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from vmae.kernels.dispatch import EVIDENCE_FILE, FAMILIES
from vmae.kernels.registry import OPS

MARGIN = 1.02  # below that a difference is within the spread of two runs
# What the torch path of an op is called in the benches; torch.compile fuses it, so its time counts too.
TORCH_PATH = ("torch path", "compiled torch path", "sdpa default")


def family_of(result: dict[str, Any]) -> str:
    """Return "sm_90" and so on for a result's GPU."""
    major, minor = result["machine"]["capability"].split(".")
    return f"sm_{max(f for f in FAMILIES if f <= int(major) * 10 + int(minor))}"


def rows_of(result: dict[str, Any], source: str) -> dict[str, list[dict[str, Any]]]:
    """Return, per op, one row per measured size: where the kernel won and where it did not."""
    table: dict[str, list[dict[str, Any]]] = {}
    for op in OPS:
        measured: dict[int, list[tuple[float, float]]] = {}
        for row in result.get("ops", []):
            if row["op"] != op.name:
                continue
            times = {t["name"]: t["ms"] for t in row["timings"] if t["ms"] is not None}
            others = [times[n] for n in TORCH_PATH if n in times]
            if not others:
                continue
            # A refused kernel never wins. Where a size was timed forward and with its backward, both count.
            ours = times.get("ours", float("inf"))
            measured.setdefault(row["shape"][op.size], []).append((ours, min(others)))
        sizes = sorted(measured)
        for i, size in enumerate(sizes):
            wins = all(ours * MARGIN <= other for ours, other in measured[size])
            low = 0 if i == 0 else (sizes[i - 1] + size) // 2 + 1
            high = 1 << 30 if i == len(sizes) - 1 else (size + sizes[i + 1]) // 2
            ratios = ", ".join(f"{other / ours:.2f}x" for ours, other in measured[size])
            table.setdefault(op.name, []).append(
                {
                    "min_size": low,
                    "max_size": high,
                    "path": "triton" if wins else "torch",
                    "why": f"kernel at {ratios} of the torch path's speed at size {size} ({source})",
                }
            )
    return table


def tiles_of(result: dict[str, Any], source: str) -> dict[str, dict[str, Any]]:
    """Return, per kernel whose candidates were timed, the winner and how far it is from the default."""
    table: dict[str, dict[str, Any]] = {}
    for row in result.get("tiles", []):
        times = {c["tile"]: c["ms"] for c in row["candidates"] if c["ms"] is not None}
        if row["best"] is None:
            continue
        default = times.get(row["candidates"][0]["tile"])
        gain = f"{default / times[row['best']]:.2f}x the default's speed" if default else "the default failed"
        table[row["kernel"]] = {"tile": row["best"], "why": f"{gain} at {row['shape']} ({source})"}
    return table


def main(argv: list[str] | None = None) -> int:
    """Merge the given results into the evidence table; a family given again is replaced."""
    parser = argparse.ArgumentParser(prog="python -m vmae.kernels.evidence", description=__doc__)
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=EVIDENCE_FILE)
    args = parser.parse_args(argv)
    table = json.loads(args.out.read_text()) if args.out.is_file() else {}
    for path in args.results:
        result = json.loads(path.read_text())
        if result["dry_run"]:
            parser.error(f"{path} is a dry run: it measured nothing")
        rows: dict[str, Any] = dict(rows_of(result, path.name))
        rows["tiles"] = tiles_of(result, path.name)
        table[family_of(result)] = rows
    args.out.write_text(json.dumps(table, indent=1) + "\n")
    print(f"wrote {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
