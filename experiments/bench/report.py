"""Tables and pictures from the GPU suite's JSON, for the README, the dashboard and `vmae bench report`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vmae.core.plan import peak_flops
from vmae.kernels.checks import require
from vmae.kernels.descriptor import Bar
from vmae.kernels.registry import BASELINES, OPS
from vmae.kernels.table import PRIORS

RESULTS = PRIORS.parent


def load_results(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """Return the measured results `gpu_*.json` of a folder, oldest first; dry runs are left out.

    Raises KernelInputError where a file is of another schema.
    """
    found = []
    for path in sorted(folder.glob("gpu_*.json")):
        result = json.loads(path.read_text())
        require(result.get("schema") == 1, f"schema 1 in {path}", result.get("schema"))
        if not result["dry_run"]:
            found.append(result | {"file": path.name})
    return sorted(found, key=lambda r: str(r["started"]))


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _ours(row: dict[str, Any]) -> float | None:
    times = [t["ms"] for t in row["timings"] if t["name"].startswith("ours") and t["ms"] is not None]
    return min(times) if times else None


def _shape(row: dict[str, Any]) -> str:
    return " ".join(f"{k}={v}" for k, v in row["shape"].items())


def ops_table(result: dict[str, Any]) -> str:
    """One line per op and shape: ours, the share of this GPU's ceilings, the ratio to every baseline."""
    copy, matrix = result["ceilings"]["copy_bytes_per_s"], result["ceilings"]["bf16_flop_per_s"]
    rows = []
    for row in result.get("ops", []):
        ours = _ours(row)
        cells = [row["op"], _shape(row), row["what"]]
        if ours is None:
            reason = next((t["refused"] for t in row["timings"] if t["name"].startswith("ours")), "no kernel")
            rows.append([*cells, "-", "-", "-", str(reason)])
            continue
        seconds = ours * 1e-3
        ratios = [
            f"{t['name']} {t['ms'] / ours:.2f}x"
            for name in BASELINES.get(row["op"], ())
            for t in row["timings"]
            if t["name"] == name and t["ms"] is not None
        ]
        cells += [f"{ours * 1e3:.1f}", f"{100 * row['bytes'] / seconds / copy:.0f}%"]
        rows.append([*cells, f"{100 * row['flops'] / seconds / matrix:.0f}%", ", ".join(ratios)])
    header = ["op", "shape", "what", "ours (us)", "of copy bandwidth", "of bf16 rate", "baseline / ours"]
    return _table(header, rows)


def steps_table(result: dict[str, Any]) -> str:
    """One line per size, ratio and variant of the whole pre-training step."""
    peak = peak_flops(result["machine"].get("gpu", ""))
    rows = []
    for row in result.get("steps", []):
        name = row["variant"] + (" + graph" if row["graph"] else "")
        cells = [row["size"], str(row["ratio"]), str(row["batch"]), name]
        if "ms" not in row:
            rows.append([*cells, "-", "-", "-", str(row["refused"])])
            continue
        memory = row.get("peak_mem_gib")
        cells += [f"{row['ms']:.2f} ({row['ms_q1']:.2f} to {row['ms_q3']:.2f})", f"{row['clips_per_s']:.0f}"]
        mfu = f"{100 * row['flop_per_s'] / peak:.1f}%" if peak else "-"
        rows.append([*cells, mfu, "-" if memory is None else f"{memory:.1f}"])
    return _table(["size", "mask", "batch", "variant", "ms (quartiles)", "clips/s", "MFU", "GiB"], rows)


def _best(row: dict[str, Any], names: tuple[str, ...]) -> float | None:
    times = [t["ms"] for t in row["timings"] if t["name"] in names and t["ms"] is not None]
    return min(times) if times else None


_STEP_BARS = (
    ("transformers sdpa", 2.0),
    ("transformers sdpa + compile", 1.4),
    ("ours, torch path + compile", 1.10),
)


def _is_about(bar: Bar, row: dict[str, Any]) -> bool:
    tokens = bar.tokens in (None, row["shape"].get("N"))
    return row["op"] == bar.bench and row["what"] == bar.timed and tokens


def bars_table(result: dict[str, Any]) -> str:
    """The targets (`Op.bars`) beside what was measured; "-" where a side of the ratio is missing."""
    rows = []

    def add(what: str, against: str, ratio: float | None, bar: float, *, at_most: bool = False) -> None:
        met = ratio is not None and (ratio <= bar if at_most else ratio >= bar)
        sign = "<=" if at_most else ">="
        shown = "-" if ratio is None else f"{ratio:.2f}x"
        rows.append([what, against, shown, f"{sign} {bar:g}x", "yes" if met else "no"])

    for target in (bar for op in OPS for bar in op.bars):
        row = next((r for r in result.get("ops", []) if _is_about(target, r)), None)
        ours, other = (None, None) if row is None else (_ours(row), _best(row, target.baselines))
        label = " ".join([target.what, *([f"N={target.tokens}"] if target.tokens else []), target.timed])
        ratio = other / ours if ours and other else None
        add(label, "best of " + ", ".join(target.baselines), ratio, target.ratio)
    steps = [r for r in result.get("steps", []) if (r["size"], r["ratio"]) == ("base", 0.9) and "ms" in r]
    # What the torch path needs no kernel for is no kernel's merit.
    ours_rows = [r for r in steps if r["variant"].startswith(("ours, kernels", "ours, best"))]
    best = min((r["ms"] for r in ours_rows), default=None)
    for variant, bar in _STEP_BARS:
        other = min((r["ms"] for r in steps if r["variant"] == variant), default=None)
        add("ViT-B step at 0.9", variant, other / best if best and other else None, bar)
    memory = min((r["peak_mem_gib"] for r in ours_rows if r.get("peak_mem_gib")), default=None)
    theirs = [r["peak_mem_gib"] for r in steps if r["variant"] == "transformers sdpa"]
    share = memory / theirs[0] if memory and theirs and theirs[0] else None
    add("ViT-B step at 0.9, peak memory", "transformers sdpa", share, 0.7, at_most=True)
    return _table(["what", "against", "measured", "bar", "met"], rows)


def tiles_table(result: dict[str, Any]) -> str:
    """Every candidate tile and its time."""
    rows = []
    for row in result["tiles"]:
        for c in row["candidates"]:
            took = str(c["refused"]) if c["ms"] is None else f"{c['ms'] * 1e3:.1f}"
            mark = "yes" if c["tile"] == row["best"] else ""
            rows.append([row["kernel"], _shape(row), c["tile"], took, mark])
    return _table(["kernel", "shape", "tile", "us", "chosen"], rows)


def profile_table(result: dict[str, Any], top: int = 20) -> str:
    """The step's kernels, largest first."""
    kernels = result["profile"]["kernels"]
    total = sum(k["ms"] for k in kernels)
    rows = [
        [f"`{k['kernel'][:70]}`", str(k["calls"]), f"{k['ms']:.3f}", f"{100 * k['ms'] / total:.1f}%"]
        for k in kernels[:top]
    ]
    return _table(["kernel", "calls", "ms", "share"], rows)


def markdown(result: dict[str, Any]) -> str:
    """Everything one machine measured, as Markdown."""
    m, c = result["machine"], result["ceilings"]
    parts = [
        f"## {m.get('gpu', 'CPU')}, {result['started']}",
        f"torch {m['torch']}, triton {m.get('triton', '-')}, transformers {m.get('transformers', '-')}. "
        f"Measured ceilings: copy {c['copy_bytes_per_s'] / 1e12:.2f} TB/s, "
        f"bf16 products {c['bf16_flop_per_s'] / 1e12:.0f} TFLOP/s. File `{result.get('file', '')}`.",
    ]
    if "tests" in result:
        tail = result["tests"]["pytest"].get("tail", [result["tests"]["pytest"].get("skipped", "")])
        parts.append(f"Kernel tests on this GPU: {tail[-1] if tail else 'no output'}")
    if result.get("ops") or result.get("steps"):
        parts += ["### Bars", bars_table(result)]
    for title, key, make in (
        ("Tiles", "tiles", tiles_table),
        ("Ops", "ops", ops_table),
        ("Whole step", "steps", steps_table),
        ("Step by kernel", "profile", profile_table),
    ):
        if result.get(key):
            parts += [f"### {title}", make(result)]
    if result.get("left_out"):
        parts.append("Left out: " + "; ".join(result["left_out"]) + ".")
    return "\n\n".join(parts) + "\n"


def draw_roofline(result: dict[str, Any], path: Path) -> None:
    """Ours and the best baseline of every op under this GPU's measured roof; a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    copy, matrix = result["ceilings"]["copy_bytes_per_s"], result["ceilings"]["bf16_flop_per_s"]
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    grid = [10 ** (x / 20) for x in range(-10, 75)]
    axes.plot(grid, [min(matrix, copy * x) / 1e12 for x in grid], color="0.3", label="measured roof")
    markers = dict(zip(BASELINES, "osD^vPX", strict=False))
    seen: set[str] = set()
    for row in result.get("ops", []):
        ours = _ours(row)
        others = [t["ms"] for t in row["timings"] if t["name"] in BASELINES.get(row["op"], ()) and t["ms"]]
        x = row["flops"] / row["bytes"]
        for ms, color in ((min(others) if others else None, "tab:gray"), (ours, "tab:orange")):
            if ms is None:
                continue
            label = row["op"] if color == "tab:orange" and row["op"] not in seen else None
            seen |= {row["op"]} if label else set()
            y = row["flops"] / (ms * 1e-3) / 1e12
            axes.plot(x, y, markers.get(row["op"], "."), color=color, markersize=8, label=label)
    axes.set(xscale="log", yscale="log", xlabel="FLOP per byte", ylabel="TFLOP/s")
    axes.set_title(f"{result['machine'].get('gpu', '')}: ours (orange), best baseline (gray)")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_ratios(result: dict[str, Any], path: Path) -> None:
    """Best baseline over ours, one bar per op and shape; 1 is even; a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    bars = []
    for row in result.get("ops", []):
        ours = _ours(row)
        others = [t["ms"] for t in row["timings"] if t["name"] in BASELINES.get(row["op"], ()) and t["ms"]]
        if ours and others:
            bars.append((f"{row['op']} {row['what']}\n{_shape(row)}", min(others) / ours))
    figure, axes = plt.subplots(figsize=(8, 0.6 + 0.5 * max(1, len(bars))), layout="constrained")
    labels, values = [b[0] for b in bars], [b[1] for b in bars]
    colors = ["tab:orange" if v >= 1 else "tab:gray" for v in values]
    axes.barh(labels, values, color=colors)
    for i, v in enumerate(values):
        axes.annotate(f"{v:.2f}x", (v, i), xytext=(3, 0), textcoords="offset points", va="center", fontsize=8)
    axes.axvline(1.0, color="0.3", linewidth=1)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.tick_params(axis="y", labelsize=7)
    axes.set_xlabel("best baseline / ours (time)")
    axes.set_title(result["machine"].get("gpu", ""))
    figure.savefig(path, dpi=120)
    plt.close(figure)
