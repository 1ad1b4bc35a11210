"""The detection bench in small: its numbers are shares, and chance is low."""

from __future__ import annotations

from pathlib import Path

from vmae.core.video.demo_boxes import DemoBoxesConfig
from vmae.experiments.bench.detection import bench_detection


def test_it_trains_and_measures(tmp_path: Path) -> None:
    films = DemoBoxesConfig(train_films=4, val_films=4, scenes=8, size=32, fps=8)
    found = bench_detection(tmp_path, films=films, epochs=2, eval_every=1, dim=32)
    assert [epoch for epoch, _ in found.history] == [1, 2]
    assert all(0 < v <= 1 for v in (found.proposals, found.chance, *(m for _, m in found.history)))
    assert found.chance < 0.3
