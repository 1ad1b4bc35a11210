"""`vmae plan` on the command line."""

from __future__ import annotations

import json

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
