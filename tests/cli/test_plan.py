"""`vmae plan` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from vmae.cli.main import main


def test_the_published_setting() -> None:
    line = "plan base --frames 16 --resolution 224 --mask-ratio 0.9 --batch 32 --gpu h200 --gpus 64"
    result = CliRunner().invoke(main, [*line.split(), "--videos", "240000", "--epochs", "800"])
    assert result.exit_code == 0
    for text in ("160 visible, 1408 decoded of 1568", "94.2", "67.6", "64 x h200", "Assumed: 40% of 989"):
        assert text in result.output


def test_json_and_decoder_mask() -> None:
    result = CliRunner().invoke(main, ["plan", "base", "--decoder-mask-ratio", "0.5", "--json"])
    values = json.loads(result.output)
    assert values["decoded"] == 784 and round(values["forward_gflop"], 1) == 48.4


def test_a_clip_that_does_not_fit_is_told() -> None:
    result = CliRunner().invoke(main, ["plan", "giant", "--batch", "512", "--gpu", "4090"])
    assert "It does not fit" in result.output


def test_a_short_run_has_minutes_not_zero_hours() -> None:
    arguments = ["plan", "tiny", "--videos", "200", "--epochs", "4800", "--gpu", "4090"]
    result = CliRunner().invoke(main, arguments)
    assert " 0.0 h" not in result.output
    assert "time" in result.output and "6s" in result.output.split("time")[1].split("\n")[0]


def test_a_recipe_on_the_videos_of_a_list(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("".join(f"v{i}.mp4 0\n" for i in range(96)))
    arguments = ["plan", "--recipe", "ucf101_base_finetune", "--data", str(tmp_path / "train.csv")]
    result = CliRunner().invoke(main, [*arguments, "--gpus", "4", "--gpu", "a100"])
    assert result.exit_code == 0, result.output
    for text in ("ucf101_base_finetune", "100 epochs of 96 videos", "40% of 312 TFLOP/s"):
        assert text in result.output
    values = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).output)
    # 96 videos, 2 repeats, 100 epochs of a clip's 1,078 GFLOP at 40% of 989 TFLOP/s.
    assert values["seconds"] == pytest.approx(96 * 2 * 100 * 1.078e12 / (0.4 * 989e12), rel=0.01)
    assert values["training_flops"] == pytest.approx(1.078e12, rel=0.01)


def test_this_cpu_is_timed(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        main, ["plan", "--recipe", "demo_finetune", "--gpu", "cpu", "--videos", "160", "--json"]
    )
    assert result.exit_code == 0, result.output
    values = json.loads(result.output)
    assert values["steps"] == 100
    assert 0.5 < values["seconds"] * values["clips_per_s"] / 1600 < 20
    assert "steps on this CPU" in values["assumed"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan"], "expected a SIZE or --recipe, got neither"),
        (["plan", "tiny", "--recipe", "demo_finetune"], "expected a SIZE or --recipe, got both"),
        (["plan", "giant", "--gpu", "cpu", "--batch", "4096"], "expected a step to fit into"),
        (["plan", "--recipe", "demo_pretrain", "--gpu", "h20"], "did you mean 'h200'?"),
    ],
)
def test_refusals(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(main, arguments)
    assert message in str(result.exception)
