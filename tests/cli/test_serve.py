"""`vmae serve` prints a command; MLflow's own server, started by it, answers and refuses over loopback."""

from __future__ import annotations

import base64
import json
import os
import shlex
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch

from vmae.cli.main import run
from vmae.core.errors import InputError
from vmae.core.model.classifier import VideoClassifier, VideoClassifierConfig
from vmae.core.model.detector import VideoDetector, VideoDetectorConfig
from vmae.core.model.end_to_end import EndToEndConfig, EndToEndDetector
from vmae.core.video.config import DataConfig
from vmae.core.weights.checkpoint import save_model
from vmae.experiments.served import Answering
from vmae.experiments.tracking import Tracker, create_store, store_at

SHAPE: dict[str, Any] = {
    "frames": 8, "height": 32, "width": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2
}  # fmt: skip
DATA = DataConfig(frames=8, sampling_rate=2, size=(32, 32), short_side=32, segments=1, crops=1, workers=0)
NAMES = ["up", "down", "left"]


def classifier() -> VideoClassifier:
    torch.manual_seed(0)
    return VideoClassifier(VideoClassifierConfig(**SHAPE, init_scale=1.0), 3).eval()


def detector() -> VideoDetector:
    torch.manual_seed(0)
    return VideoDetector(VideoDetectorConfig(**SHAPE, init_scale=1.0), 3).eval()


def test_a_path_bytes_and_base64_get_the_same_answer(tiny_videos: Path, tmp_path: Path) -> None:
    video = next(iter(sorted(tiny_videos.rglob("*.mp4"))))
    content = video.read_bytes()
    text = base64.b64encode(content).decode()
    model = Answering(classifier(), {}, DATA, NAMES, device="cpu")
    rows = model.answer([str(video), content, text, f"data:video/mp4;base64,{text}"])
    assert [r["path"] for r in rows] == [str(video), "input 1", "input 2", "input 3"]
    assert all(r["probabilities"] == rows[0]["probabilities"] for r in rows)
    assert rows[0]["name"] == NAMES[int(np.argmax(rows[0]["probabilities"]))]
    meta = {"task": "regression", "scale": {"mean": [1, 2, 3], "deviation": [1, 1, 2]}}
    head = Answering(classifier(), meta, DATA, NAMES, device="cpu")
    assert set(head.answer([content])[0]["values"]) == set(NAMES)
    small = Answering(classifier(), {}, DATA, NAMES, device="cpu", max_mib=len(content) / 2**21)
    for asked, message in (
        ([content], "input 0: expected a video of at most"),
        ([text], "input 0: expected a video of at most"),
        ([content[:300]], "input 0: expected a video that can be read"),
        ([str(tmp_path / "none.mp4")], "none.mp4: expected a video that can be read"),
        (["data:video/mp4;base64,%%%"], "input 0: expected the path of a video or base64"),
        ([7], "input 0: expected the path of a video, its bytes or base64, got int"),
    ):
        with pytest.raises(InputError) as error:
            small.answer(asked)
        assert message in str(error.value) and len(str(error.value)) < 300


def test_a_detector_says_what_the_people_in_the_boxes_do(tiny_videos: Path) -> None:
    video = next(iter(sorted(tiny_videos.rglob("*.mp4"))))
    model = Answering(detector(), {}, DATA, NAMES, device="cpu")
    boxes = [[0.1, 0.1, 0.6, 0.9], [0.5, 0.2, 1.0, 0.8]]
    (row,) = model.answer([{"video": video.read_bytes(), "time_s": 0.5, "boxes": boxes}])
    assert [p["box"] for p in row["people"]] == boxes
    assert all(set(p["scores"]) == set(NAMES) for p in row["people"])
    for item, message in (
        (str(video), "expected video, time_s and boxes"),
        (
            {"video": str(video), "time_s": 0.5, "boxes": [[0.5, 0, 0.1, 1]]},
            "expected boxes 0 <= x1 < x2 <= 1",
        ),
        ({"video": str(video), "time_s": 900, "boxes": boxes}, "the list asks for second 900"),
    ):
        with pytest.raises(InputError, match=message):
            model.answer([item])


def test_a_detector_that_finds_people_is_asked_for_a_second_alone(tiny_videos: Path) -> None:
    video = str(next(iter(sorted(tiny_videos.rglob("*.mp4")))))
    torch.manual_seed(0)
    model = Answering(EndToEndDetector(EndToEndConfig(**SHAPE, queries=4), 3), {}, DATA, NAMES, device="cpu")
    (row,) = model.answer([{"video": video, "time_s": 0.5}])
    assert len(row["people"]) == 4 and all(set(p["scores"]) == set(NAMES) for p in row["people"])
    for item in (video, {"video": video, "time_s": 0.5, "boxes": [[0.1, 0.1, 0.6, 0.9]]}):
        with pytest.raises(InputError, match="expected video and time_s and no more"):
            model.answer([item])


def printed(capsys: pytest.CaptureFixture[str], *argv: object) -> list[str]:
    with pytest.raises(SystemExit) as stopped:
        run([str(a) for a in argv])
    assert not stopped.value.code
    return shlex.split(capsys.readouterr().out)


@contextmanager
def serving(command: list[str], cwd: Path) -> Iterator[str]:
    """The server of a printed command; `mlflow` is this environment's."""
    port = command[command.index("--port") + 1]
    command = [str(Path(sys.executable).with_name("mlflow")), *command[command.index("mlflow") + 1 :]]
    # MLflow starts uvicorn by its name: an environment that is used without being activated needs its folder.
    folders = [Path(sys.executable).parent, Path(mlflow.__file__).parents[4] / "bin"]
    path = os.pathsep.join([*map(str, folders), os.environ["PATH"]])
    with (cwd / "server.log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=cwd, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "PATH": path}
        )
        try:
            url = f"http://127.0.0.1:{port}"
            for _ in range(600):
                assert process.poll() is None, (cwd / "server.log").read_text()
                try:
                    urllib.request.urlopen(f"{url}/ping", timeout=5)
                    break
                except OSError:
                    time.sleep(0.2)
            yield url
        finally:
            process.terminate()
            process.wait(30)


def ask(url: str, inputs: list[Any]) -> tuple[int, Any]:
    body = json.dumps({"inputs": inputs}).encode()
    request = urllib.request.Request(f"{url}/invocations", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=120) as reply:
            return reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as e:
        return e.code, json.loads(e.read())


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classifier", "detector"])
def test_mlflows_server_answers_and_refuses(
    kind: str, tiny_videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = store_at(tmp_path / "runs")
    create_store(store)
    model = classifier() if kind == "classifier" else detector()
    save_model(store.runs_dir / "m" / "model", model, {"labels": NAMES})
    with Tracker(
        store, store.runs_dir / "m", name="m", key="run:m", kind="finetune",
        params={"data.sampling_rate": 2, "data.short_side": 32, "data.sampling": "dense"},
        tags={"vmae.checkpoint": str(store.runs_dir / "m" / "model")},
    ):  # fmt: skip
        pass
    command = printed(capsys, "serve", "m", "--port", free_port(), "--runs-dir", store.runs_dir)
    video = next(iter(sorted(tiny_videos.rglob("*.mp4"))))
    text = base64.b64encode(video.read_bytes()).decode()
    boxes = [[0.1, 0.1, 0.6, 0.9]]

    def item(content: str) -> Any:
        return content if kind == "classifier" else {"video": content, "time_s": 0.5, "boxes": boxes}

    with serving(command, tmp_path) as url:
        status, reply = ask(url, [item(str(video)), item(text)])
        assert status == 200, reply
        first, second = reply["predictions"]
        key = "probabilities" if kind == "classifier" else "people"
        assert first[key] == second[key] and second["path"] == "input 1"
        here = Answering(model, {}, DATA, NAMES, device="cpu").answer([item(str(video))])[0]
        assert np.allclose(_numbers(first[key]), _numbers(here[key]), atol=1e-5)
        status, reply = ask(url, [item(base64.b64encode(b"no video" * 20).decode())])
        assert status == 400 and "expected a video that can be read" in reply["message"]
        assert len(reply["message"]) < 300
        status, reply = ask(url, [item("A" * (65 * 2**20 * 4 // 3))])
        assert status == 400 and "at most 64 MiB, got 65.0 MiB" in reply["message"]
        assert len(reply["message"]) < 300


def _numbers(found: Any) -> list[float]:
    return found if isinstance(found[0], float) else [v for p in found for v in p["scores"].values()]
