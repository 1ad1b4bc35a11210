"""`--init` from the hub, against a small hub-like server on loopback; the list of published checkpoints."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load

from vmae.core.errors import CheckpointError, InputError
from vmae.core.model.classifier import VideoClassifier, VideoClassifierConfig
from vmae.core.model.videomae import VideoMAEConfig
from vmae.core.weights.convert import write_model
from vmae.core.weights.official import to_official
from vmae.core.weights.zoo import ZOO, find, load_init, resolve

ROOT = Path(__file__).resolve().parents[3]
COMMIT = "0" * 39 + "1"


class Hub(BaseHTTPRequestHandler):
    """`/ORG/NAME/resolve/REVISION/FILE`, as the hub answers it."""

    files: ClassVar[dict[str, bytes]] = {}
    log: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        repo, _, rest = self.path.partition("/resolve/")
        content = self.files.get(f"{repo.strip('/')}/{rest.partition('/')[2]}")
        type(self).log.append(f"{self.command} {self.path}")
        if content is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    Hub.files, Hub.log = {}, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def model() -> VideoClassifier:
    torch.manual_seed(0)
    size = {"frames": 4, "height": 16, "width": 16, "embed_dim": 32, "depth": 1, "head_norm_eps": 1e-5}
    return VideoClassifier(VideoClassifierConfig.from_size("tiny", **size), 3)


def publish(tmp_path: Path, repo: str) -> None:
    write_model(tmp_path / "published", model(), "hf", {"labels": ["a", "b", "c"]}, overwrite=True)
    for file in (tmp_path / "published").iterdir():
        Hub.files[f"{repo}/{file.name}"] = file.read_bytes()


SCRIPT = """
import json, sys
from vmae.core.errors import VmaeError
from vmae.core.weights.zoo import resolve
out = []
for source in sys.argv[1:]:
    try:
        out.append(str(resolve(source)))
    except VmaeError as e:
        out.append(f"{type(e).__name__}: {e}")
print(json.dumps(out))
"""


def fetch(endpoint: str, home: Path, *sources: str, offline: bool = False) -> list[str]:
    """Where each source was fetched to, or its error."""
    # huggingface_hub reads its environment once, on import: a process for each setting.
    env = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()} | {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "1" if offline else "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-c", SCRIPT, *sources]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=120)
    result: list[str] = json.loads(done.stdout.splitlines()[-1])
    return result


def total(model: torch.nn.Module) -> float:
    return sum(p.double().abs().sum().item() for p in model.parameters())


def test_init_from_the_hub_online_then_offline(hub: str, tmp_path: Path) -> None:
    publish(tmp_path, "some/videomae")
    publish(tmp_path, "some/old")
    torch.save(load(Hub.files.pop("some/old/model.safetensors")), tmp_path / "w.bin")
    Hub.files["some/old/pytorch_model.bin"] = (tmp_path / "w.bin").read_bytes()
    torch.save({"module": to_official(model())[0]}, tmp_path / "x.pth")
    Hub.files["some/v2/distill/x.pth"] = (tmp_path / "x.pth").read_bytes()
    sources = ["hf://some/videomae", "hf://some/old", "hf://some/v2/distill/x.pth"]

    *fetched, missing = fetch(hub, tmp_path / "home", *sources, "hf://some/nothing")
    wanted = total(model())
    new, old = load_init(fetched[0], frames=8), load_init(fetched[1])
    single = load_init(fetched[2], num_heads=4)
    for loaded in (new, old, single):
        assert total(loaded.model) == pytest.approx(wanted, abs=1e-9)
    assert [x.format for x in (new, old, single)] == ["hf", "hf", "official"]
    assert new.meta["labels"] == ["a", "b", "c"]
    assert "interpolated in the 2x2x2 grid" in new.notes[0]
    assert missing.startswith("CheckpointError: cannot fetch hf://some/nothing (")
    assert sum(line.startswith("GET /some/videomae") for line in Hub.log) == 3

    Hub.log.clear()
    *cached, absent = fetch(hub, tmp_path / "home", *sources, "hf://some/other", offline=True)
    assert cached == fetched
    assert not Hub.log
    assert absent.startswith("CheckpointError: cannot fetch hf://some/other (HF_HUB_OFFLINE is set")
    assert f"from {hub}/some/other by hand, put them in one directory and give its path" in absent


@pytest.mark.slow
def test_a_hub_that_is_away(tmp_path: Path) -> None:
    (away,) = fetch("http://127.0.0.1:9", tmp_path, "hf://some/videomae")
    assert "cannot fetch hf://some/videomae (" in away and "by hand" in away


def test_names_that_need_hands() -> None:
    with pytest.raises(
        CheckpointError, match=r"v1-k400-base-1600 is not on the hub: download .*drive\.google"
    ):
        resolve("v1-k400-base-1600")
    with pytest.raises(InputError, match="did you mean 'v1-k400-base-1600'"):
        find("v1-k400-bas-1600")
    with pytest.raises(CheckpointError, match="no such file"):
        resolve("runs/nowhere.pth")
    with pytest.raises(InputError, match="expected hf://org/name"):
        resolve("hf://name")


def test_a_local_path_of_any_format(tmp_path: Path) -> None:
    write_model(tmp_path / "c", model(), "vmae")
    assert load_init(tmp_path / "c").format == "vmae"


def test_the_list() -> None:
    names = [e.name for e in ZOO]
    assert len(set(names)) == len(names)
    assert len({e.where for e in ZOO}) == len(ZOO)
    for entry in ZOO:
        VideoMAEConfig.from_size(entry.size)
        assert (entry.top1 is None) == (entry.task == "pretrain")
        assert find(entry.name) is entry
    published = {"K400": 10, "SSv2": 6, "UCF101": 2}
    for data, count in published.items():
        assert sum(e.data == data and e.name.startswith("v1-") for e in ZOO) == count
