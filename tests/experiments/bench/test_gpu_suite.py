"""The GPU suite's code path on the CPU, and the tables and pictures made from its JSON."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from vmae.experiments.bench import gpu_suite, gpu_work, report
from vmae.experiments.bench.gpu_tests import Background
from vmae.kernels import timing
from vmae.kernels.attention import configs
from vmae.kernels.decoder_tokens.bench import tokens_bench
from vmae.kernels.descriptor import OpBench, Variant
from vmae.kernels.patch_gather import configs as patches
from vmae.kernels.registry import BASELINES, OPS
from vmae.kernels.supervise import Journal

pytestmark = pytest.mark.usefixtures("honest_interpreter")


@pytest.fixture(scope="module")
def dry(honest_interpreter: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    out = tmp_path_factory.mktemp("suite")
    assert gpu_suite.main(["--dry-run", "--in-process", "--parts", "b", "--out", str(out)]) == 0
    yield out / "gpu_dry_run.json"
    configs.measured_here.clear()
    patches.measured_here.clear()


def test_dry_run_checks_and_times_every_op(dry: Path) -> None:
    result = json.loads(dry.read_text())
    assert result["dry_run"] is True
    assert result["left_out"] == []
    assert {row["op"] for row in result["ops"]} == set(BASELINES)
    for row in result["ops"]:
        for variant in row["timings"]:
            assert variant["refused"] is None, (row["op"], variant)
            assert variant["error"] < timing.TOLERANCE
            assert variant["ms"] > 0


def test_dry_run_times_the_tiles(dry: Path) -> None:
    result = json.loads(dry.read_text())
    assert {row["kernel"] for row in result["tiles"]} == set(configs.CANDIDATES[90]) | set(patches.WARPS)
    for row in result["tiles"]:
        assert len(row["candidates"]) >= 2
        assert all(c["refused"] is None and c["ms"] > 0 for c in row["candidates"]), row
        assert row["best"] in {c["tile"] for c in row["candidates"]}


def test_dry_run_calibrates_and_keeps_logs(dry: Path) -> None:
    chosen = json.loads(dry.read_text())["calibration"]
    assert {key.split(" ")[0] for key in chosen} == {op.name for op in OPS}
    for key, row in chosen.items():
        assert not any(choice.startswith("triton") for choice in row["refused"]), (key, row)
        assert {"torch", "triton default"} <= set(row["ms"])
    assert (dry.parent / "gpu_dry_run_logs" / "journal.jsonl").is_file()


def test_a_test_that_is_cut_off_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a tool has its own limit, whatever time is left; what it printed stays."""
    limits = {"pytest": 0.5, "memcheck": 0.2, "small_launches": 60.0}
    code = "import sys, time; print('so far', flush=True); time.sleep(float(sys.argv[1]))"

    def start(device: str, folder: Path) -> dict[str, Any]:
        return {
            name: Background.start(
                [sys.executable, "-S", "-c", code, "0" if name == "small_launches" else "600"],
                folder / f"{name}.log",
                limit_s=limit,
            )
            for name, limit in limits.items()
        }

    monkeypatch.setattr(gpu_suite, "start_tests", start)
    suite = gpu_suite.Suite.start(tmp_path, "cpu", "a", dry_run=True)
    assert suite.test("cpu", tmp_path, time.monotonic() + 30) is False
    found = suite.result["tests"]
    assert found["pytest"]["cut_off"] and found["memcheck"]["exit_code"] is None
    assert found["small_launches"] == {"exit_code": 0, "tail": ["so far"]}
    assert (tmp_path / "memcheck.log").exists()


@pytest.mark.slow
def test_dry_run_of_all_parts(tmp_path: Path) -> None:
    assert gpu_suite.main(["--dry-run", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "gpu_dry_run.json").read_text())
    assert result["tests"]["pytest"]["exit_code"] == 0
    assert result["profile"]["kernels"]
    variants = [row["variant"] for row in result["steps"]]
    assert "ours, kernels + compile" in variants
    assert "transformers sdpa + compile" in variants
    assert all("refused" not in row for row in result["steps"]), result["steps"]


def test_a_wrong_kernel_is_not_timed() -> None:
    good = tokens_bench(2, 3, 5, 16, device="cpu", compiled=False)
    wrong = Variant(name="ours", run=lambda x: tuple(r * 1.5 for r in good.variants[1].run(x)))
    item = OpBench(**{**vars(good), "variants": [wrong, good.variants[1]]})
    result = timing.run_bench(item, "cpu", rounds=1, min_ms=0.1)
    assert result.timings[0].ms is None
    assert "wrong output" in str(result.timings[0].refused)
    assert result.timings[1].ms is not None


def test_what_hung_before_is_not_run_again() -> None:
    item = tokens_bench(2, 3, 5, 16, device="cpu", compiled=False)
    told: list[str] = []
    result = timing.run_bench(item, "cpu", rounds=1, min_ms=0.1, skip={"ours": "hung"}, announce=told.append)
    assert [t.refused for t in result.timings] == ["hung", None]
    assert set(told) == {"torch path"}


def test_the_worker_goes_on_behind_the_journal(tmp_path: Path) -> None:
    journal = Journal(path=tmp_path / "journal")
    how: dict[str, Any] = {"dry_run": True}
    names = [item.name for item in gpu_work.work_items("cpu", "b", **how)]
    assert names[0] == "ceilings"
    assert len(names) == len(set(names))
    for name in names:
        if name != "op decoder tokens":
            journal.done(name, "ceilings", {}, took_s=0)
    journal.write(blame="op decoder tokens", part="ours", why="hung")
    gpu_work.work(journal, "cpu", "b", begin=time.monotonic(), budget_s=3600, **how)
    (row,) = [e["value"] for e in journal.read() if e.get("key") == "ops"]
    assert {t["name"]: t["refused"] for t in row["timings"]} == {"ours": "hung", "torch path": None}
    assert journal.finished() == set(names)


def test_a_former_result_serves_the_parts_measured_now(tmp_path: Path) -> None:
    tile = configs.CANDIDATES[90]["short_bwd"][1]
    row = {"kernel": "short_bwd", "shape": {}, "best": str(tile), "candidates": []}
    how: dict[str, Any] = {"dry_run": True, "budget_s": 3600}
    try:
        gpu_work.work(
            Journal(path=tmp_path / "journal"),
            "cpu",
            "",
            begin=time.monotonic(),
            known={"tiles": [row]},
            **how,
        )
        assert configs.attention_plan(160, 64, torch.bfloat16, 90).short_bwd == tile
    finally:
        configs.measured_here.clear()


def test_out_of_time_is_said(tmp_path: Path) -> None:
    journal = Journal(path=tmp_path / "journal")
    how: dict[str, Any] = {"dry_run": True}
    gpu_work.work(journal, "cpu", "b", begin=time.monotonic() - 10, budget_s=9, **how)
    left = [e["left_out"] for e in journal.read()]
    assert left == [item.name for item in gpu_work.work_items("cpu", "b", **how)]


def test_without_a_gpu_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit):
        gpu_suite.main(["--out", str(tmp_path)])
    assert "no CUDA GPU here" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_report_from_a_result(dry: Path, tmp_path: Path) -> None:
    assert report.load_results(dry.parent) == []  # a dry run is no result
    result = json.loads(dry.read_text())
    step = {"size": "base", "ratio": 0.9, "batch": 64, "variant": "ours, kernels", "graph": True}
    result["steps"] = [step | {"refused": "wrong loss"}]
    text = report.markdown(result)
    assert "| ViT-B step at 0.9 | transformers sdpa | - | >= 2x | no |" in text
    assert "| short_bwd | B=1 N=20 H=1 D=16 | 32x0 8 warps 1 stages |" in text
    assert "| masked_patch_loss | B=2 N=8 K=4 P=384 | fwd+bwd |" in text
    assert "ours, kernels + graph | - | - | - | wrong loss |" in text
    for draw in (report.draw_roofline, report.draw_ratios):
        draw(result, tmp_path / "picture.png")
        assert (tmp_path / "picture.png").stat().st_size > 5000


def test_bars_are_ratios_of_what_was_timed() -> None:
    """Made-up timings: half the best SDPA backend's time; a step of 20 ms against 50, and half the memory."""
    timings = [{"name": n, "ms": ms} for n, ms in (("ours", 1.0), ("sdpa flash", 3.0), ("sdpa cudnn", 2.0))]
    op = {"op": "fused_attention", "what": "fwd", "shape": {"N": 160}, "timings": timings}
    step = {"size": "base", "ratio": 0.9, "graph": True}
    steps = [
        step | {"variant": "ours, torch path", "ms": 1.0, "peak_mem_gib": 1.0},  # no kernels: not ours here
        step | {"variant": "ours, kernels + compile", "ms": 20.0, "peak_mem_gib": 8.0},
        step | {"variant": "transformers sdpa", "ms": 50.0, "peak_mem_gib": 16.0},
    ]
    text = report.bars_table({"ops": [op], "steps": steps})
    assert "| 2.00x | >= 1.5x | yes |" in text
    assert "| ViT-B step at 0.9 | transformers sdpa | 2.50x | >= 2x | yes |" in text
    assert "| ViT-B step at 0.9 | transformers sdpa + compile | - | >= 1.4x | no |" in text
    assert "| 0.50x | <= 0.7x | yes |" in text


def test_another_schema_is_refused(tmp_path: Path) -> None:
    (tmp_path / "gpu_x.json").write_text(json.dumps({"schema": 2, "dry_run": False}))
    with pytest.raises(ValueError, match="expected schema 1"):
        report.load_results(tmp_path)
