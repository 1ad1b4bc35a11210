"""Kernels: what was measured, on which machine, against what; and what the compiler says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

from vmae.core.plan import peak_flops
from vmae.dashboard import charts
from vmae.experiments import bench
from vmae.experiments.bench.report import RESULTS, load_results
from vmae.kernels import kernel_status
from vmae.kernels.registry import BASELINES

SUITE = "python -m vmae.experiments.bench.gpu_suite --out kernels/results"
CPU_STEP = Path(bench.__file__).with_name("results") / "bench_step.json"


def page() -> None:
    """The page."""
    results = load_results(RESULTS)
    if results:
        newest = len(results) - 1
        chosen = st.selectbox(
            "Machine",
            range(len(results)),
            newest,
            format_func=lambda i: _machine(results[i]),
            key="kernels_machine",
            width=460,
        )
        show(results[chosen])
    else:
        with st.container(border=True):
            st.subheader("No GPU has been measured yet", anchor=False)
            st.markdown(
                "The kernels are tested in Triton's interpreter and compiled ahead of time (below); how fast"
                " they are on a GPU is not known. One command runs the tests, the benchmarks and a profile on"
                " an NVIDIA GPU, and this page then shows its roofline and the baselines:"
            )
            st.code(SUITE, language="bash")
    _cpu_step()
    left, right = st.columns([2, 3], gap="large")
    with left:
        _active()
    with right:
        _compiled()


def show(result: dict[str, Any]) -> None:
    """One machine's measurements: roofline, ratios, tables."""
    machine, ceilings = result["machine"], result["ceilings"]
    versions = ", ".join(f"{k} {machine[k]}" for k in ("torch", "triton", "transformers") if k in machine)
    st.markdown(
        f"{versions} · measured ceilings: copy **{ceilings['copy_bytes_per_s'] / 1e12:.2f} TB/s**,"
        f" bf16 products **{ceilings['bf16_flop_per_s'] / 1e12:.0f} TFLOP/s** · `{result.get('file', '')}`"
    )
    if result.get("left_out"):
        st.caption("Left out there: " + "; ".join(result["left_out"]))
    rows = op_rows(result)
    if rows:
        left, right = st.columns(2, gap="large")
        with left:
            st.subheader("Roofline", anchor=False)
            spec = charts.roofline(rows, ceilings["copy_bytes_per_s"], ceilings["bf16_flop_per_s"])
            st.vega_lite_chart(spec, width="stretch", key="roofline")
        with right:
            st.subheader(
                "Best baseline over ours", anchor=False, help="Ratio of times; above 1, ours is faster."
            )
            st.vega_lite_chart(charts.ratios(ratio_rows(rows)), width="stretch", key="ratios")
        st.subheader("Ops", anchor=False)
        _ops(rows)
    if result.get("steps"):
        st.subheader("Whole pre-training step", anchor=False)
        _steps(result)
    if result.get("profile"):
        st.subheader("The step by kernel", anchor=False)
        kernels = result["profile"]["kernels"]
        total = sum(k["ms"] for k in kernels)
        table = pd.DataFrame([{**k, "share": k["ms"] / total} for k in kernels[:25]])
        config = {"share": st.column_config.ProgressColumn(format="percent", min_value=0.0, max_value=1.0)}
        st.dataframe(table, hide_index=True, width="stretch", column_config=config)


def op_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """One row for each op, shape and variant that was timed: times in microseconds."""
    rows = []
    for row in result.get("ops", []):
        shape = " ".join(f"{k}={v}" for k, v in row["shape"].items())
        for timing in row["timings"]:
            ours = timing["name"].startswith("ours")
            rows.append(
                {
                    "op": row["op"],
                    "what": row["what"],
                    "shape": shape,
                    "variant": timing["name"],
                    "kind": "ours" if ours else "baseline",
                    "named": ours or timing["name"] in BASELINES.get(row["op"], ()),
                    "us": None if timing["ms"] is None else timing["ms"] * 1e3,
                    "refused": timing.get("refused"),
                    "intensity": row["flops"] / row["bytes"],
                    "tflops": None if not timing["ms"] else row["flops"] / timing["ms"] / 1e9,
                    "gbytes": None if not timing["ms"] else row["bytes"] / timing["ms"] / 1e6,
                }
            )
    return rows


def ratio_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Best named baseline over ours for each op, direction and shape where both were timed."""
    cases: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    for r in rows:
        if r["us"] is not None and r["named"]:
            case = cases.setdefault((r["op"], r["what"], r["shape"]), {"ours": [], "baseline": []})
            case[r["kind"]].append(r["us"])
    return [
        {"name": f"{op} {what}", "shape": shape, "ratio": min(t["baseline"]) / min(t["ours"])}
        for (op, what, shape), t in cases.items()
        if t["ours"] and t["baseline"]
    ]


def _machine(result: dict[str, Any]) -> str:
    return f"{result['machine'].get('gpu', 'CPU')} · {result['started']}"


def _ops(rows: list[dict[str, Any]]) -> None:
    table = pd.DataFrame(rows)[["op", "what", "shape", "variant", "us", "gbytes", "tflops", "refused"]]
    config = {
        "us": st.column_config.NumberColumn("µs", format="%.1f"),
        "gbytes": st.column_config.NumberColumn("GB/s", format="%.0f"),
        "tflops": st.column_config.NumberColumn("TFLOP/s", format="%.1f"),
    }
    st.dataframe(table, hide_index=True, width="stretch", column_config=config, key="kernels_ops")


def _steps(result: dict[str, Any]) -> None:
    peak = peak_flops(result["machine"].get("gpu", ""))
    table = pd.DataFrame(
        [
            {
                "size": r["size"],
                "mask": r["ratio"],
                "batch": r["batch"],
                "variant": r["variant"] + (" + graph" if r["graph"] else ""),
                "ms": r.get("ms"),
                "clips/s": r.get("clips_per_s"),
                "MFU": r["flop_per_s"] / peak if peak and "flop_per_s" in r else None,
                "GiB": r.get("peak_mem_gib"),
                "refused": r.get("refused"),
            }
            for r in result["steps"]
        ]
    )
    config = {
        "ms": st.column_config.NumberColumn(format="%.2f"),
        "clips/s": st.column_config.NumberColumn(format="%.0f"),
        "MFU": st.column_config.ProgressColumn(format="percent", min_value=0.0, max_value=1.0),
        "GiB": st.column_config.NumberColumn(format="%.1f"),
    }
    st.dataframe(table, hide_index=True, width="stretch", column_config=config, key="kernels_steps")


def _cpu_step() -> None:
    """The whole step on a CPU against transformers, as `vmae bench step` recorded it."""
    st.subheader(
        "The pre-training step on a CPU",
        anchor=False,
        help="Forward, backward and fused AdamW; the three take turns in one process, medians are compared.",
    )
    try:
        found = json.loads(CPU_STEP.read_text())
        rows = step_rows(found)
    except (OSError, ValueError, KeyError, TypeError):
        st.markdown("No measurement is recorded here. This command makes one:")
        st.code(f"vmae bench step --json {CPU_STEP}", language="bash")
        return
    machine = found["machine"]
    st.markdown(
        f"{machine['cpu']}, {machine['threads']} threads, torch {machine['torch']}, transformers"
        f" {machine['transformers']} · ViT-{found['size']}, mask ratio {found['mask_ratio']:g} ·"
        f" geometric mean **{found['geometric_mean']:.2f}x** the faster of the two baselines"
    )
    left, right = st.columns([2, 3], gap="large")
    with left:
        ratios = [{"name": r["cell"], "shape": "", "ratio": r["faster baseline / ours"]} for r in rows]
        st.vega_lite_chart(charts.ratios(ratios), width="stretch", key="cpu_ratios")
    with right:
        config = {
            name: st.column_config.NumberColumn(format="%.2fx" if "/" in name else "%.0f")
            for name in rows[0]
            if name != "cell"
        }
        st.dataframe(
            pd.DataFrame(rows), hide_index=True, width="stretch", column_config=config, key="cpu_step"
        )


def step_rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a cell (clip shape, batch, precision): median milliseconds and peak MiB of each contender."""
    rows = []
    for cell in found["cells"]:
        names = list(cell["median_ms"])
        rows.append(
            {"cell": cell["cell"], "faster baseline / ours": cell["ratio_to_faster_peer"]}
            | {f"{_contender(n)} ms": cell["median_ms"][n] for n in names}
            | {f"{_contender(n)} MiB": cell["peak_bytes"][n] / 2**20 for n in names if "peak_bytes" in cell}
        )
    return rows


def _contender(name: str) -> str:
    return name.replace("hf-", "transformers ").replace("vmae", "ours")


def _active() -> None:
    st.subheader("Active on this machine", anchor=False)
    status = pd.DataFrame([{"op": s.op, "path": s.path, "why": s.reason} for s in kernel_status()])
    st.dataframe(status, hide_index=True, width="stretch", key="kernels_active")


def _compiled() -> None:
    file = RESULTS / "aot.json"
    if not file.is_file():
        return
    st.subheader(
        "Compiled ahead of time",
        anchor=False,
        help="Resources of every kernel, compiled without a GPU for each architecture.",
    )
    found = json.loads(file.read_text())
    table = pd.DataFrame(
        [
            {"kernel": name.partition(" | ")[0], "arch": name.partition(" | ")[2], **values}
            for name, values in found["rows"].items()
        ]
    )
    spills = int((table["spill_bytes"] > 0).sum())
    st.caption(f"triton {found['triton']}; {len(table)} kernels, {spills} of them spill registers.")
    archs = sorted(set(table["arch"]))
    chosen = st.pills(
        "Architecture", archs, default=archs[-1], key="kernels_arch", label_visibility="collapsed"
    )
    shown = table[table["arch"] == chosen] if chosen else table
    st.dataframe(shown, hide_index=True, width="stretch", height=420, key="kernels_aot")
