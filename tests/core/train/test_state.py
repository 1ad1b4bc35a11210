"""Training checkpoints: whole or passed over; a full disk loses nothing that was there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vmae.core.errors import CheckpointError
from vmae.core.train.state import list_states, load_newest_state, load_state, save_state


def state(step: int) -> dict:
    return {"step": step, "weights": {"w": torch.arange(1000.0) + step}, "history": [{"loss": 0.5}]}


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = save_state(tmp_path, 3, state(3))
    loaded = load_state(path)
    assert loaded["step"] == 3 and loaded["history"] == [{"loss": 0.5}]
    assert torch.equal(loaded["weights"]["w"], torch.arange(1000.0) + 3)


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 10, 11):
        save_state(tmp_path, step, state(step), keep_last=2)
    assert [p.name for p in list_states(tmp_path)] == ["step-0000000010", "step-0000000011"]


def test_a_step_can_be_kept_besides(tmp_path: Path) -> None:
    for step in (1, 2, 3, 10):
        save_state(tmp_path, step, state(step), keep_last=1, keep=(2, 99))
    assert [p.name for p in list_states(tmp_path)] == ["step-0000000002", "step-0000000010"]


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, -1])
def test_a_checkpoint_cut_short_is_passed_over_with_a_warning(tmp_path: Path, keep: float) -> None:
    save_state(tmp_path, 1, state(1))
    newest = save_state(tmp_path, 2, state(2)) / "state.pt"
    data = newest.read_bytes()
    cut = len(data) + keep if keep < 0 else len(data) * keep if 0 < keep < 1 else keep
    newest.write_bytes(data[: int(cut)])
    with pytest.warns(UserWarning, match=r"step-0000000002.*expected \d+ bytes"):
        loaded = load_newest_state(tmp_path)
    assert loaded is not None and loaded[1]["step"] == 1


def test_a_flipped_bit_is_recognised(tmp_path: Path) -> None:
    path = save_state(tmp_path, 1, state(1))
    data = bytearray((path / "state.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (path / "state.pt").write_bytes(data)
    with pytest.raises(CheckpointError, match="expected checksum"):
        load_state(path)
    with pytest.warns(UserWarning, match="damaged"):
        assert load_newest_state(tmp_path) is None


@pytest.mark.parametrize("manifest", ["", "{", "[]", '{"size": "x"}'])
def test_a_damaged_manifest_is_recognised(tmp_path: Path, manifest: str) -> None:
    path = save_state(tmp_path, 1, state(1))
    (path / "manifest.json").write_text(manifest)
    with pytest.raises(CheckpointError, match="manifest"):
        load_state(path)


def test_an_interrupted_write_is_no_checkpoint_and_is_cleaned_up(tmp_path: Path) -> None:
    save_state(tmp_path, 1, state(1))
    leftover = tmp_path / ".tmp-step-0000000002"
    shutil.copytree(tmp_path / "step-0000000001", leftover)
    assert [p.name for p in list_states(tmp_path)] == ["step-0000000001"]
    save_state(tmp_path, 3, state(3))
    assert not leftover.exists()


def test_no_folder_is_no_checkpoint(tmp_path: Path) -> None:
    assert load_newest_state(tmp_path / "none") is None


FULL_DISK = """
import resource, sys, torch
from pathlib import Path
from vmae.core.train.state import save_state, list_states, load_newest_state
folder = Path(sys.argv[1])
save_state(folder, 1, {"step": 1, "w": torch.zeros(10)})
# The kernel refuses to let any file of this process grow past 64 KiB: what a full disk does, for real.
import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
try:
    save_state(folder, 2, {"step": 2, "w": torch.zeros(100_000)})
except OSError as e:
    print("refused", e.errno)
print([p.name for p in folder.iterdir()], load_newest_state(folder)[1]["step"])
"""


def test_a_file_that_cannot_grow_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    out = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert out.stdout.splitlines() == ["refused 27", "['step-0000000001'] 1"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    """A file system of 1 MiB of its own; skipped where this user may not mount one."""
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.run(command, check=False).returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    yield mount  # type: ignore[misc]
    subprocess.run(["umount", str(mount)], check=True)


def test_a_full_disk_leaves_the_last_good_checkpoint(small_disk: Path) -> None:
    save_state(small_disk, 1, state(1))
    with pytest.raises(OSError, match="No space left"):
        save_state(small_disk, 2, {"step": 2, "w": torch.zeros(1_000_000)})
    assert [p.name for p in small_disk.iterdir()] == ["step-0000000001"]
    save_state(small_disk, 3, state(3))
    loaded = load_newest_state(small_disk)
    assert loaded is not None and loaded[1]["step"] == 3


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_state import save_state, state
real, seen = os.rename, []
def rename(source, target):
    if len(seen) == {before}:
        os.kill(os.getpid(), signal.SIGKILL)
    seen.append(target)
    real(source, target)
os.rename = rename
save_state(Path({folder!r}), 3, state(30))
"""


@pytest.mark.parametrize("before", [0, 1])
def test_a_kill_while_a_step_is_saved_again_loses_nothing(tmp_path: Path, before: int) -> None:
    save_state(tmp_path, 3, state(3), keep_last=1)
    script = KILLED.format(tests=str(Path(__file__).parent), folder=str(tmp_path), before=before)
    root = str(Path(__file__).resolve().parents[3])
    out = subprocess.run([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": root}, check=False)
    assert out.returncode == -9
    loaded = load_newest_state(tmp_path)
    assert loaded is not None and loaded[1]["step"] == 3
    save_state(tmp_path, 3, state(31), keep_last=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step-0000000003"]
    assert load_state(tmp_path / "step-0000000003")["step"] == 31
