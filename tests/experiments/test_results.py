"""The evidence pages: a reduced question is run for real, exported and built; what the pages say of it."""

from __future__ import annotations

import csv
import dataclasses
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from vmae.cli.main import main, spread_set
from vmae.cli.sweep import sweep
from vmae.cli.sweep_options import SweepOptions
from vmae.core.config import override
from vmae.core.errors import InputError
from vmae.experiments.results import questions
from vmae.experiments.results.build import build_results
from vmae.experiments.results.export import command_of
from vmae.experiments.results.pages import row_command
from vmae.experiments.results.ranks import points_of, ranks
from vmae.experiments.results.table import Facts, Row, Setting, SweepTable, read_table, write_table
from vmae.experiments.sweeps.driver import open_store
from vmae.experiments.sweeps.spec import Plan

FACTS = Facts(
    command="vmae sweep masking_ratio --seeds 3 --run-name ratio-demo",
    commit="abc",
    recipe="demo_pretrain",
    clip="8 x 32 x 32 pixels",
    model="encoder 32 x 2, decoder 32 x 1",
    schedule="2 epochs",
    ranked_by="probe/top1",
    measured="probe",
    trained_on=48,
)


@pytest.fixture(scope="module")
def measured(sweeps: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with the first question as its page's command asks it, at a reduced size."""
    folder = tmp_path_factory.mktemp("results")
    asked = questions.ALL["ratio"].command(questions.SETS["demo"])
    words = [*shlex.split(asked)[2:], "--values", "0.5,0.75", "--runs-dir", str(folder / "runs")]
    words[words.index("--seeds") + 1] = "2"
    words += ["--recipe", "demo_pretrain", "--data", str(sweeps.data / "train.csv"), "--epochs", "1"]
    for key, value in sweeps.shape.items():
        words += ["--set", f"{key}={value}"]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "one_by_one.py"), *words],
        cwd=folder,
        env=sweeps.environment(VMAE_COMMAND=shlex.join(["vmae", "sweep", *words])),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder / "runs"


def _invoke(*words: str) -> str:
    done = CliRunner().invoke(main, list(words), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_reduced_question_is_run_exported_and_built(measured: Path, tmp_path: Path) -> None:
    tables, pages = tmp_path / "tables", tmp_path / "pages"
    assert "ratio-demo: 6 trials, a strip" in _invoke(
        "results", "export", str(tables), "--runs-dir", str(measured)
    )
    table = read_table(tables, "ratio-demo")
    results = {
        p.parent.name: json.loads(p.read_text())["metrics"] for p in measured.rglob("trials/*/result.json")
    }
    for row in table.rows:
        top1 = row.numbers["probe/top1"]
        assert len(row.right) == 12 and row.right.count("1") / 12 == pytest.approx(top1, abs=1e-5)
        if not table.settings[row.setting].baseline:
            made = results[f"ratio{table.label(row.setting)}_s{row.seed}"]
            assert top1 == pytest.approx(made["probe/top1"], abs=1e-5)
            assert row.numbers["epochs"] == 1 and row.numbers["tflop"] > 0
    _invoke("results", "build", str(tables), "--out", str(pages))
    page = (pages / "ratio.md").read_text()
    for text in (
        "12 held-out videos, 2 seeds",
        "| 0.5 |",
        "| random weights |",
        "--values 0.75",
        "data/ratio-demo.csv",
        "What the paper reports",
    ):
        assert text in page, text
    for name in ("ratio.png", "data/ratio-demo.png"):
        assert (pages / name).read_bytes().startswith(b"\x89PNG")
    index = (pages / "README.md").read_text()
    assert "[How much to hide](ratio.md)" in index
    assert "vmae sweep decoder_depth --epochs 26 --seeds 3 --values 1,2,4 --run-name depth-demo" in index
    assert not (pages / "depth.md").exists()  # what was not run has no page
    first = _contents(pages)
    for path, data in first.items():
        assert str(measured.parent).encode() not in data, f"{path} names a place of this machine"
    _invoke("results", "build", str(pages / "data"), "--out", str(pages))
    assert _contents(pages) == first


def test_a_seed_that_is_not_whole_is_left_out(measured: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    shutil.copytree(measured, runs)
    (runs / "sweeps" / "ratio-demo" / "trials" / "ratio0.75_s1" / "result.json").unlink()
    said = _invoke("results", "export", str(tmp_path / "tables"), "--runs-dir", str(runs))
    assert "ratio-demo: left out, for some trial is not finished: seed 1" in said
    table = read_table(tmp_path / "tables", "ratio-demo")
    assert table.seeds == [0] and len(table.rows) == 3


def _table(name: str, rights: dict[tuple[int, int, int], str], ratios: list[float]) -> SweepTable:
    rows = tuple(
        Row(
            setting=setting,
            seed=seed,
            fold=fold,
            right=right,
            numbers={
                "probe/top1": right.count("1") / (len(right) - right.count(".")),
                "probe/chance": 0.25,
                "pretrain/monitor_participation": float(right.count("1")),
                "pretrain/monitor_participation_random": 1.0,
                "pretrain/loss": float(right.count("1")),
            },
        )
        for (setting, seed, fold), right in rights.items()
    )
    settings = (
        *(Setting(overrides={"mask.ratio": r}) for r in ratios),
        Setting(overrides={}, baseline=True),
    )
    return SweepTable(name=name, facts=FACTS, settings=settings, rows=rows)


def test_a_table_is_read_back_and_folds_stand_side_by_side(tmp_path: Path) -> None:
    rights = {
        (0, 0, 0): "1111....",
        (0, 0, 1): "....1110",
        (1, 0, 0): "1000....",
        (1, 0, 1): "....0000",
        (2, 0, 0): "0100....",
        (2, 0, 1): "....0000",
    }
    table = _table("ratio-tennis7", rights, [0.5, 0.9])
    write_table(table, tmp_path)
    assert read_table(tmp_path, "ratio-tennis7") == table
    assert table.folds == [0, 1] and table.videos == 8
    assert table.answers(0).interval().mean == 7 / 8
    built = build_results(tmp_path, tmp_path / "out")
    assert built.answered == {"ratio": {"tennis7": "1 seed, 8 videos"}}
    page = (tmp_path / "out" / "ratio.md").read_text()
    assert "8 held-out videos in 2 folds, each held out once, 1 seed" in page
    assert "The best mean is 0.5's, +75.0 points" in page  # against the paper's 0.9
    assert "| 0.9 | 12.5% [" in page and "| 69.6 | 80.0 |" in page
    assert "Not shown to be better than the same network with random weights: 0.9." in page
    with open(tmp_path / "ratio-tennis7.csv", newline="") as f:
        assert next(csv.reader(f))[:3] == ["setting", "seed", "fold"]


def test_monitors_are_ranked_over_settings_and_losses_turned_round() -> None:
    rights = {(i, s, -1): "1" * (2 * i + s + 1) + "0" * (13 - 2 * i - s) for i in range(6) for s in (0, 1)}
    table = _table("ratio-demo", rights, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    points = points_of([table, dataclasses.replace(table, name="loss-demo")])
    assert len(points.accuracy) == 12  # the same pre-training in two sweeps counts once
    best, *_, worst = ranks(points)
    assert (best.name, best.rho, best.settings) == ("pretrain/monitor_participation", 1.0, 6)
    assert (worst.name, worst.rho) == ("pretrain/loss", -1.0)
    few = _table("ratio-demo", {k: v for k, v in rights.items() if k[0] < 3}, [0.1, 0.2, 0.3])
    assert ranks(points_of([few])) == []


def test_commands_name_no_place_of_this_machine() -> None:
    ran = (
        "vmae sweep masking_ratio --data /a/b/all.csv --folds=/a/b/folds.csv --values 0.5,0.9 --seeds 3 "
        "--runs-dir /x/runs --max-concurrent 1 --run-name ratio-mine --set model.target=teacher:pixels"
    )
    command = command_of(ran, "mine")
    assert command == (
        "vmae sweep masking_ratio --data mine/all.csv --folds=mine/folds.csv --values 0.5,0.9 --seeds 3 "
        "--run-name ratio-mine --set model.target=teacher:pixels"
    )
    assert row_command(command, {"mask.ratio": 0.9}) == (
        "vmae sweep masking_ratio --data mine/all.csv --folds=mine/folds.csv --seeds 3 "
        "--set model.target=teacher:pixels --values 0.9"
    )
    assert row_command("vmae sweep label_share --param=a=b", {"pipeline.scratch": False}) == (
        "vmae sweep label_share --param pipeline.scratch=False"
    )


def test_every_question_has_a_sweep_and_the_paper_a_setting_of_it() -> None:
    from vmae.experiments.sweeps import definitions

    for question in questions.ALL.values():
        assert question.paper
        if question.sweep:
            values = [str(v) for v in definitions.get(question.sweep).values]
            assert question.reference in ("", *values), question.name
    assert questions.of_sweep("ratio-demo") == (questions.ALL["ratio"], questions.SETS["demo"])
    assert questions.of_sweep("masking_ratio-1") is None
    for name in questions.SETS:
        listed = _invoke("results", "list", "--on", name)
        assert f"--run-name ratio-{name}" in listed


def _plan(command: str, runs: Path) -> Plan:
    context = sweep.make_context("sweep", spread_set([*shlex.split(command)[2:], "--runs-dir", str(runs)]))
    name = context.params.pop("name")
    options = SweepOptions.taken(context.params)
    return options.plan(open_store(options.runs_dir), name)


@pytest.mark.parametrize("name", [q.name for q in questions.ALL.values() if q.sweep])
def test_every_row_of_a_page_is_run_again_by_its_command(name: str, tmp_path: Path) -> None:
    command = questions.ALL[name].command(questions.SETS["demo"])
    whole = _plan(command, tmp_path / "runs")
    for trials in (whole.settings()[0], whole.settings()[-1]):
        row = _plan(row_command(command, trials[0].overrides), tmp_path / trials[0].id)
        (found,) = row.settings()
        assert row.base.pipeline.probe_at == 0  # alone it has no shorter one to be compared with
        base = override(whole.base, {"pipeline.probe_at": 0})
        assert [t.config(row.base) for t in found] == [t.config(base) for t in trials]


def test_a_folder_without_tables_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected tables of `vmae results export`, found none"):
        build_results(tmp_path, tmp_path / "out")
