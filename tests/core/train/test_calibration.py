"""What a training does about kernels before its first step, on a device that does what it is told."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from vmae.cli.main import main
from vmae.core.train import calibration
from vmae.core.train.task import Report, silent
from vmae.experiments.run import reporter
from vmae.experiments.tracking import Tracker, create_store, store_at, tags
from vmae.experiments.tracking.client import experiment_id, find_run, mlflow_client
from vmae.kernels import calibrate, dispatch

sys.path.insert(0, str(Path(__file__).parent))
import test_step as steps

sys.path.pop(0)

ROOT = Path(__file__).resolve().parents[3]
WINS = {"torch": {"ms": 2.0}, "triton default": {"ms": 1.0}, "others": {"ms": 3.0}}
LOSES = {"torch": {"ms": 1.0}, "others": {"ms": 3.0}}
Events = list[tuple[str, dict[str, Any]]]


class Machine:
    """Begins trainings on a fake device; nothing is trained."""

    def __init__(self, videos: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.videos, self.folder, self.patch = videos, folder, monkeypatch
        fake = ROOT / "tests" / "kernels"
        monkeypatch.syspath_prepend(str(fake))
        monkeypatch.setattr(calibration, "LAYER", "fake_device:FakeDevice")
        # What is told to be fast is chosen, however busy the machine of the test.
        monkeypatch.setattr(calibration, "BUDGET_S", {False: 200.0, True: 200.0})
        monkeypatch.setattr(calibrate, "LIMIT_S", 100.0)
        for name, value in {
            "PYTHONPATH": os.pathsep.join([str(fake), str(ROOT)]),
            "TRITON_INTERPRET": "0",
            "FAKE_DEVICE_LOG": str(folder / "log"),
            "VMAE_CACHE_DIR": str(folder / "cache"),
            "VMAE_CALIBRATE": "",
            "VMAE_KERNELS": "",
        }.items():
            monkeypatch.setenv(name, value)

    def begin(
        self,
        told: dict[str, Any],
        *,
        run: str = "run",
        resume: bool = False,
        then: Report = silent,
        **train: Any,
    ) -> Events:
        self.patch.setenv("FAKE_DEVICE", json.dumps(told))
        (self.folder / "log").write_text("")
        events: Events = []
        # Compiled sites would really be compiled, by torch.
        made = steps.trainer(self.videos, self.folder / run, **{"compile": False, **train})

        def report(name: str, data: dict[str, Any]) -> None:
            events.append((name, data))
            then(name, data)

        made.report = report
        made.begin(resume=resume)
        return events

    def measured(self) -> bool:
        return bool((self.folder / "log").read_text())


@pytest.fixture
def machine(tiny_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    yield Machine(tiny_videos, tmp_path, monkeypatch)
    dispatch.install({})


def of(events: Events, name: str) -> dict[str, Any]:
    (found,) = [data for event, data in events if event == name]
    return found


def test_a_long_run_measures_once_and_keeps_what_it_used(machine: Machine) -> None:
    short = of(machine.begin(WINS), "kernels")
    assert not machine.measured()  # seconds of work: nothing is measured for it
    assert short["choices"] == {}
    assert all("not measured" in line for line in short["lines"])

    slow = {"multiprocessors": 1e-9}  # the same run on a device that needs hours for it
    long = of(machine.begin(WINS | slow, run="long"), "kernels")
    assert machine.measured()
    assert set(long["choices"].values()) == {"triton default"}
    assert len(long["choices"]) == len(long["lines"]) == long["measured"] == 5
    saved = json.loads((machine.folder / "long" / "kernels.json").read_text())
    assert saved["fingerprint"] == long["fingerprint"]
    assert {k: r["choice"] for k, r in saved["sites"].items()} == long["choices"]
    assert {k: r.choice for k, r in dispatch.installed().items()} == long["choices"]

    other = of(machine.begin(LOSES | slow, run="other"), "kernels")
    assert not machine.measured()  # known by now
    assert other["choices"] == long["choices"]

    # The machine's table is lost or measured anew; the run that began by it goes on by it.
    for table in (machine.folder / "cache" / "kernels").glob("*.json"):
        table.unlink()
    dispatch.install({})
    again = of(machine.begin(LOSES | slow, run="long", resume=True), "kernels")
    assert not machine.measured()
    assert again["choices"] == long["choices"]
    assert all("as this run began" in line for line in again["lines"])
    assert {r.choice for r in dispatch.installed().values()} == {"triton default"}

    machine.patch.setenv("VMAE_CALIBRATE", "force")
    forced = of(machine.begin(LOSES, run="forced"), "kernels")
    assert set(forced["choices"].values()) == {"torch"}
    machine.patch.setenv("VMAE_CALIBRATE", "off")
    assert [e for e, _ in machine.begin(WINS | slow, run="off")] == ["start"]
    assert dispatch.installed() == {}


def test_mlflow_and_the_doctor_tell_what_was_chosen(machine: Machine) -> None:
    machine.patch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store = store_at(machine.folder / "runs")
    create_store(store)
    run_dir = store.runs_dir / "k1"
    with Tracker(store, run_dir, name="k1", key="k1", kind="pretrain", params={}) as tracker:
        slow = {"multiprocessors": 1e-9}
        events = machine.begin(WINS | slow, then=reporter(tracker, "pretrain"))
    chosen = of(events, "kernels")
    client = mlflow_client(store.uri)
    run_id = find_run(client, experiment_id(store, client), "k1")
    assert run_id is not None
    told = client.get_run(run_id).data.tags
    assert told[tags.KERNELS] == chosen["fingerprint"]
    for op in ("gather_patches", "fused_attention", "masked_patch_loss", "assemble_decoder_tokens"):
        assert told[f"{tags.KERNELS}.{op}"] == "triton", op

    # The doctor has a line for each site; here, where kernels would run in the interpreter.
    machine.patch.setenv("TRITON_INTERPRET", "1")
    said = CliRunner().invoke(main, ["doctor"]).output
    for key, choice in chosen["choices"].items():
        (line,) = [x for x in said.splitlines() if x.startswith(f"{key} ")]
        assert f" {choice} " in line and "2.00 times as fast" in line
    dispatch.install({})
    said = CliRunner().invoke(main, ["doctor"]).output
    assert "fused_attention bfloat16" not in said
    assert [x.split()[1] for x in said.splitlines() if x.startswith("fused_attention")] == ["torch"]


def test_what_goes_wrong_costs_a_warning(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "LAYER", "fake_device:Absent")
    events = machine.begin(WINS)
    assert [e for e, _ in events] == ["warning", "start"]
    assert "kernels not measured (AttributeError" in of(events, "warning")["text"]


def test_a_choice_of_the_environment_is_not_measured(machine: Machine) -> None:
    machine.patch.setenv("VMAE_KERNELS", "torch")
    assert [e for e, _ in machine.begin(WINS | {"multiprocessors": 1e-9})] == ["start"]
    assert not machine.measured()
