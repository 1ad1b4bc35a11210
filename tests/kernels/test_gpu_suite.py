"""The GPU suite's code path on the CPU, and the tables and pictures made from its JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vmae.kernels import bench, gpu_suite, report


@pytest.fixture(scope="module")
def dry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("suite")
    assert gpu_suite.main(["--dry-run", "--parts", "b", "--out", str(out)]) == 0
    return out / "gpu_dry_run.json"


def test_dry_run_checks_and_times_every_op(dry: Path) -> None:
    result = json.loads(dry.read_text())
    assert result["dry_run"] is True
    assert {row["op"] for row in result["ops"]} == set(report.BASELINES)
    for row in result["ops"]:
        for timing in row["timings"]:
            assert timing["refused"] is None, (row["op"], timing)
            assert timing["error"] < bench.TOLERANCE
            assert timing["ms"] > 0


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
    good = bench.tokens_bench(2, 3, 5, 16, device="cpu", compiled=False)
    wrong = bench.Variant(name="ours", run=lambda x: tuple(r * 1.5 for r in good.variants[1].run(x)))
    item = bench.OpBench(**{**vars(good), "variants": [wrong, good.variants[1]]})
    result = bench.run_bench(item, "cpu", rounds=1, min_ms=0.1)
    assert result.timings[0].ms is None
    assert "wrong output" in str(result.timings[0].refused)
    assert result.timings[1].ms is not None


def test_without_a_gpu_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

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
    assert "| masked_patch_loss | B=2 N=8 K=4 P=384 | fwd+bwd |" in text
    assert "ours, kernels + graph | - | - | - | wrong loss |" in text
    for draw in (report.draw_roofline, report.draw_ratios):
        draw(result, tmp_path / "picture.png")
        assert (tmp_path / "picture.png").stat().st_size > 5000


def test_another_schema_is_refused(tmp_path: Path) -> None:
    (tmp_path / "gpu_x.json").write_text(json.dumps({"schema": 2, "dry_run": False}))
    with pytest.raises(ValueError, match="expected schema 1"):
        report.load_results(tmp_path)
