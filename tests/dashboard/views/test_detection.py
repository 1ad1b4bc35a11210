"""The detection page on a really trained tiny detector, and what is drawn on its frames."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from vmae.core.measure import box_films
from vmae.core.measure.films import film
from vmae.core.video.demo_boxes import DemoBoxesConfig, make_demo_boxes
from vmae.core.video.samples import PersonBox, Sample
from vmae.dashboard.settings import VARIABLE
from vmae.dashboard.sources import sample_name

SHAPE = (
    "model.frames=4", "model.height=32", "model.width=32", "model.depth=1", "model.embed_dim=32",
    "data.frames=4", "data.size=32,32", "data.short_side=32", "train.batch_size=8", "detect.num_classes=8",
)  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from vmae.cli.main import run

    films = make_demo_boxes(
        tmp_path_factory.mktemp("boxes"),
        DemoBoxesConfig(train_films=2, val_films=1, scenes=4, size=32, fps=8),
    )
    folder = tmp_path_factory.mktemp("runs")
    with pytest.raises(SystemExit) as stopped:
        run([
            "finetune", "--task", "detection", "--recipe", "demo_detection", "--epochs", "1",
            "--run-name", "det", "--runs-dir", str(folder),
            "--data", str(films / "train.csv"), "--data-root", str(films / "films"),
            "--set", *SHAPE, f"detect.label_map={films / 'labels.pbtxt'}",
        ])  # fmt: skip
    assert not stopped.value.code
    return folder


def test_truth_and_prediction_play_beside_the_precision(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, json.dumps({"runs_dir": str(runs)}))
    script = "from vmae.dashboard.frame import guarded\nfrom vmae.dashboard.views.detection import page\n"
    app: Any = AppTest.from_string(script + "guarded(page)()\n", default_timeout=60).run()
    assert not app.exception and not app.error, [*app.exception, *app.error]
    assert app.metric[0].label == "Frame-mAP at IoU 0.5" and "random scores" in app.metric[0].delta
    assert app.selectbox(key="detection_frame").options[1] == "val_0000 at 3 s"
    app.selectbox(key="detection_frame").select_index(2).run()
    app.slider(key="detection_score").set_value(0.0).run()
    assert not app.exception and not app.error


def test_key_frames_are_named_by_their_time_where_clips_have_classes(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, json.dumps({"runs_dir": str(runs)}))
    script = "from vmae.dashboard.frame import guarded\nfrom vmae.dashboard.views.data import page\n"
    app: Any = AppTest.from_string(script + "guarded(page)()\n", default_timeout=60).run()
    assert not app.exception and not app.error, [*app.exception, *app.error]
    assert "4 key frames of 1 film" in [s.value for s in app.subheader]
    sample = Sample(path="a.mp4", label=-1, values=(0.5, 2.0))
    assert sample_name(sample, {}) == "0.5, 2"
    assert sample_name(Sample(path="a.mp4", label=-1, labels=(1, 0)), {1: "run"}) == "run, class 0"


def test_boxes_stand_where_the_list_has_them(tmp_path: Path) -> None:
    sample = Sample(
        path="film.mp4", label=-1, time_s=902.0,
        boxes=(PersonBox(box=(0.25, 0.25, 0.75, 0.75), actions=(1, 3), person=0),),
    )  # fmt: skip
    rows = ["film,902,0.25,0.25,0.75,0.75,1,0.9", "film,902,0.25,0.25,0.75,0.75,2,0.8",
            "film,902,0.25,0.25,0.75,0.75,3,0.2", "other,902,0,0,1,1,1,0.9"]  # fmt: skip
    (tmp_path / "p.csv").write_text("\n".join(rows))
    found = box_films.read_predictions(tmp_path / "p.csv")
    (person,) = box_films.predicted_boxes(sample, found, str, min_score=0.5)
    assert person.lines == ("1 0.90", "2 0.80") and person.colour == box_films.WRONG
    (right,) = box_films.predicted_boxes(sample, found, str, min_score=0.85)
    assert right.colour == box_films.RIGHT
    (true,) = box_films.true_boxes(sample, str)
    assert true.lines == ("1", "3")
    frames = np.zeros((3, 64, 64, 3), np.uint8)
    drawn = box_films.with_boxes(frames, [true], key=1)
    size = drawn.shape[1]
    assert drawn.shape == (3, size, size, 3) and size >= box_films.SMALLEST // 2
    edges = np.argwhere((drawn[0] == box_films.TRUTH).all(-1))
    assert edges.min() == size // 4 and edges.max() == size * 3 // 4 - 1
    assert (drawn[1] != drawn[0]).any()
    assert film("png", [("true", drawn)], 8.0)[:4] == b"\x89PNG"


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("path,label\n")
    with pytest.raises(Exception, match="expected 'video_id,timestamp"):
        box_films.read_predictions(tmp_path / "p.csv")
