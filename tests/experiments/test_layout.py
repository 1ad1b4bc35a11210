"""Paths under a run directory have one home."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vmae.core.files import read_json, replacing, write_json
from vmae.experiments.layout import RunsDir, is_of_spool, is_of_sweeps_spool, is_small
from vmae.experiments.stages import STAGES

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("layer", ["experiments", "cli", "dashboard"])
def test_no_path_of_a_run_directory_is_put_together_elsewhere(layer: str) -> None:
    pattern = re.compile(r'/ "(cache|sweeps|trials|artifacts|mlflow\.db|plan\.json)"|\.parent\.parent')
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in sorted((ROOT / layer).rglob("*.py"))
        if path != ROOT / "experiments" / "layout.py"
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if pattern.search(line)
    ]
    assert not found, "\n".join(found)


def test_run_directories_made_before_open_as_before(tmp_path: Path) -> None:
    runs = RunsDir(tmp_path)
    trial = runs.sweep("ratio-1").trial("ratio0.5_s0")
    assert trial.path == tmp_path / "sweeps" / "ratio-1" / "trials" / "ratio0.5_s0"
    kept = [trial.numbers(STAGES[name].record).name for name in ("pretrain", "knn")]
    assert kept == ["pretrained.json", "knn.json"]
    assert trial.stage("finetune").checkpoints == trial.path / "finetune" / "checkpoints"
    assert runs.sweep("ratio-1").runs == runs
    for path in (runs.run("b").config, runs.run("a").config, runs.sweep("s").plan, trial.spool):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert runs.runs() == ["a", "b"]
    assert [s.name for s in runs.all_sweeps()] == ["s"]
    assert [t.path.name for t in runs.sweep("ratio-1").all_trials()] == ["ratio0.5_s0"]
    assert [home.path for home in runs.spools()] == [trial.path]


def test_small_files_are_told_by_their_place() -> None:
    assert is_small("sweeps/s-1/plan.json") and is_small("sweeps/s-1/trials/a/progress.json")
    assert not is_small("sweeps/s-1/tune/x.json") and not is_small("sweeps/s-1/trials/a/model/config.json")
    assert is_of_spool("sweeps/s-1/trials/a/tracking.offset")
    assert is_of_sweeps_spool("sweeps/s-1/tracking.jsonl")
    assert not is_of_sweeps_spool("sweeps/s-1/trials/a/tracking.jsonl")


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / ("n" * 250)
    write_json(path, [1], durable=durable)
    with pytest.raises(RuntimeError), replacing(path, durable=durable) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert read_json(path) == [1]
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert read_json(tmp_path / "absent") is None
