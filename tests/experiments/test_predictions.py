"""What an evaluated run says of its videos: read back, counted, chosen, written."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np

from vmae.core.measure.evaluate import VideoPrediction, summarise, write_predictions
from vmae.experiments.predictions import as_csv, chosen, classes_of, confusions, read_predictions

NAMES = ["run", "sit", "walk, slowly"]


def said(path: str, index: int, label: int, probs: list[float] | None) -> VideoPrediction:
    given = None if probs is None else np.array(probs)
    error = "" if probs is not None else "corrupt"
    return VideoPrediction(index=index, path=path, label=label, probs=given, views=1, error=error)


def test_cells_of_the_confusion_matrix_are_their_videos_the_surest_first(tmp_path: Path) -> None:
    lines = [
        said("/v/a.mp4", 0, 0, [0.9, 0.1, 0.0]),
        said("/v/b, c.mp4", 1, 0, [0.3, 0.6, 0.1]),
        said("/v/d.mp4", 2, 0, [0.1, 0.8, 0.1]),
        said("/v/e.mp4", 3, 2, [0.2, 0.2, 0.6]),
        said("/v/f.mp4", 4, 1, None),
    ]
    found = summarise(lines, 3)
    write_predictions(tmp_path / "p.csv", found, NAMES)
    back = read_predictions(tmp_path / "p.csv")
    assert classes_of(back) == sorted(NAMES)
    counts = confusions(back)
    assert counts["run", "sit"] == found.confusion[0, 1] == 2 and counts["sit", ""] == 1
    assert [s.path for s in chosen(back, "run", "sit")] == ["/v/d.mp4", "/v/b, c.mp4"]
    assert [s.path for s in chosen(back, None, None)] == ["/v/d.mp4", "/v/b, c.mp4", "/v/f.mp4"]
    assert [s.path for s in chosen(back, "sit", "")] == ["/v/f.mp4"]
    rows = list(csv.DictReader(io.StringIO(as_csv(chosen(back, "run", "sit")))))
    assert rows[1] == {
        "path": "/v/b, c.mp4",
        "label": "run",
        "predicted": "sit",
        "share": "0.600000",
        "error": "",
    }


def test_numbers_of_classes_are_in_their_order(tmp_path: Path) -> None:
    lines = [said(f"/v/{k}.mp4", k, k, np.eye(12)[k].tolist()) for k in range(12)]
    write_predictions(tmp_path / "p.csv", summarise(lines, 12))
    assert classes_of(read_predictions(tmp_path / "p.csv")) == [str(k) for k in range(12)]
