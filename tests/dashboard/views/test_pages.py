"""Every other page on the real miniature store, control by control, and empty."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from vmae.dashboard.settings import VARIABLE


def open_page(name: str) -> Any:
    """The page alone, as the app runs it (AppTest cannot follow a navigation of functions)."""
    script = (
        "from vmae.dashboard.frame import guarded\n"
        f"from vmae.dashboard.views.{name} import page\n"
        "guarded(page)()\n"
    )
    return AppTest.from_string(script, default_timeout=60).run()


def healthy(app: Any) -> Any:
    assert not app.exception, [e.message for e in app.exception]
    assert not app.error, [e.value for e in app.error]
    return app


def headings(app: Any) -> list[str]:
    return [h.value for h in app.subheader]


PAGES = ["reconstruct", "sweeps", "runs", "detection", "data", "features"]


@pytest.mark.parametrize("name", PAGES)
def test_without_a_store_every_page_names_a_command(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, json.dumps({"runs_dir": str(tmp_path / "none")}))
    app = healthy(open_page(name))
    assert app.code
    for command in app.code:
        check_command(command.value)
    assert not (tmp_path / "none").exists()


def check_command(line: str) -> None:
    """The command line exists: its verbs and options, as click knows them."""
    import click

    from vmae.cli.main import main

    program, *words = shlex.split(line)
    assert program == "vmae", line
    command: click.Command = main
    with click.Context(main) as context:
        while isinstance(command, click.Group):
            found = command.get_command(context, words.pop(0))
            assert found is not None, line
            command = found
    known = {name for p in command.params for name in p.opts}
    assert {w for w in words if w.startswith("-")} <= known, line


def test_sweeps(dashboard: Any) -> None:
    app = healthy(open_page("sweeps"))
    assert headings(app)[:3] == ["Ranking", "Learning curves", "Trials"]
    assert len(app.get("vega_lite_chart")) >= 3
    table = app.dataframe[0].value
    assert list(table["mask ratio"]) == ["0.5", "0.75", "random weights"]
    assert table["accuracy"].between(0, 1).all()
    assert table["training loss"].notna().tolist() == [True, True, False]
    assert len(app.get("bidi_component")) == 1
    healthy(app.selectbox(key="sweep_curve").set_value("pretrain/loss").run())
    healthy(app.number_input(key="strip_clip").set_value(1).run())
    healthy(app.number_input(key="strip_seed").set_value(3).run())
    healthy(app.segmented_control(key="strip_own").set_value("one for all").run())
    healthy(app.slider(key="strip_ratio").set_value(0.6).run())
    assert len(app.get("bidi_component")) == 1


def test_runs(dashboard: Any) -> None:
    app = healthy(open_page("runs"))
    assert "4 runs" in [c.value for c in app.caption]
    healthy(app.text_input(key="runs_where").set_value("mask.ratio < 0.6, kind = trial").run())
    assert app.dataframe[0].value["name"].tolist() == ["ratio0.5_s0"]
    assert "Reconstruction by epoch" in headings(app)
    healthy(app.text_input(key="runs_where").set_value("").run())
    healthy(app.pills(key="runs_kind").set_value(["sweep"]).run())
    assert app.dataframe[0].value["name"].tolist() == ["mini"]
    healthy(app.pills(key="runs_kind").set_value([]).run())
    healthy(app.selectbox(key="runs_metric").set_value("probe/top1").run())
    healthy(app.toggle(key="runs_log").set_value(True).run())
    healthy(app.toggle(key="runs_live").set_value(True).run())
    app.text_input(key="runs_where").set_value("no operator").run()
    assert "Expected" in app.error[0].value or "expected" in app.error[0].value


def test_comparing_runs_shows_what_differs(dashboard: Any) -> None:
    def script() -> None:
        from vmae.dashboard.settings import Settings
        from vmae.dashboard.views.runs import compare
        from vmae.experiments.runs import list_runs

        settings = Settings.from_env()
        compare(settings, [r for r in list_runs(settings.store) if r.kind == "trial"])

    app = healthy(AppTest.from_function(script, default_timeout=60).run())
    table = app.dataframe[0].value
    assert table.index.tolist() == ["mask.ratio"]
    assert set(table.loc["mask.ratio"]) == {"0.5", "0.75"}
    healthy(app.toggle(key="runs_all_False").set_value(True).run())
    assert "data.val_csv" in app.dataframe[0].value.index


def test_data(dashboard: Any) -> None:
    app = healthy(open_page("data"))
    assert headings(app) == [
        "4 clips, 2 classes",
        "Last check of the files",
        "Clips",
        "What training sees of a clip",
    ]
    assert f"vmae data check {dashboard.csv}" in [c.value for c in app.code]
    assert len(app.get("bidi_component")) == 2
    healthy(app.multiselect(key="data_classes").set_value([1]).run())
    assert any("2 clips" in c.value for c in app.caption)
    healthy(app.number_input(key="aug_clip").set_value(2).run())
    healthy(app.selectbox(key="aug_kind").set_value("random_resized_crop").run())
    healthy(app.toggle(key="aug_flip").set_value(True).run())
    healthy(app.number_input(key="aug_seed").set_value(5).run())
    healthy(app.slider(key="aug_ratio").set_value(0.5).run())
    assert app.number_input(key="data_page").value == 1


def test_data_shows_the_last_check_and_names_broken_clips(dashboard: Any, tmp_path: Path) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"nothing")
    csv = tmp_path / "list.csv"
    csv.write_text(f"{dashboard.videos[0]} 0\nbroken.mp4 1\n")
    (tmp_path / "list.report.csv").write_text("path,status,reason\na.mp4,ok,\nbroken.mp4,bad,unreadable\n")
    app = AppTest.from_string(
        "from vmae.dashboard.views.data import _clips, _report\n"
        "from vmae.dashboard.sources import DatasetEntry, read_samples\n"
        f"d = DatasetEntry(id='x', label='x', csv={str(csv)!r}, data_root='')\n"
        "_report(d)\n"
        "_clips(d, read_samples(d), {})\n",
        default_timeout=60,
    ).run()
    healthy(app)
    assert "**1** bad" in app.markdown[0].value
    assert app.dataframe[0].value["path"].tolist() == ["broken.mp4"]
    assert app.warning[0].value.startswith("Not readable: clip 1")


def test_features(dashboard: Any) -> None:
    app = healthy(open_page("features"))
    assert headings(app) == ["Attention", "Features"]
    assert len(app.get("bidi_component")) == 2
    healthy(app.slider(key="attention_layer").set_value(1).run())
    healthy(app.toggle(key="attention_heads").set_value(True).run())
    healthy(app.segmented_control(key="features_map").set_value("PCA").run())
    healthy(app.selectbox(key="features_clip").set_value(3).run())
    healthy(app.selectbox(key="features_checkpoint").select_index(1).run())
    assert app.metric[0].label.startswith("Five nearest")


def measured() -> dict[str, Any]:
    """A result of the GPU suite's shape; the numbers are made up for this test."""
    timings = [
        {"name": "ours", "ms": 0.05},
        {"name": "sdpa flash", "ms": 0.1},
        {"name": "x", "ms": None, "refused": "no"},
    ]
    op = {
        "op": "fused_attention",
        "what": "forward",
        "shape": {"B": 8, "N": 160},
        "bytes": 1e8,
        "flops": 1e10,
    }
    step = {"size": "base", "ratio": 0.9, "batch": 8, "variant": "ours", "graph": True}
    return {
        "machine": {"gpu": "NVIDIA H200", "torch": "2.13.0", "triton": "3.7.1"},
        "started": "2000-01-01",
        "ceilings": {"copy_bytes_per_s": 4e12, "bf16_flop_per_s": 7e14},
        "ops": [{**op, "timings": timings}],
        "steps": [
            {**step, "ms": 10.0, "clips_per_s": 800.0, "flop_per_s": 3e14, "peak_mem_gib": 9.5},
            {**step, "refused": "out of memory"},
        ],
        "profile": {"kernels": [{"kernel": "gemm", "calls": 3, "ms": 1.5}]},
        "left_out": ["huge"],
    }


def test_kernels_shows_a_measured_machine(dashboard: Any) -> None:
    from vmae.dashboard.views.kernels import op_rows, ratio_rows

    assert ratio_rows(op_rows(measured()))[0]["ratio"] == pytest.approx(2.0)

    def script() -> None:
        import streamlit as st

        from vmae.dashboard.views.kernels import show

        show(st.session_state["result"])

    app = AppTest.from_function(script, default_timeout=60)
    app.session_state["result"] = measured()
    healthy(app.run())
    assert headings(app) == [
        "Roofline",
        "Best baseline over ours",
        "Ops",
        "Whole pre-training step",
        "The step by kernel",
    ]
    assert app.dataframe[1].value["MFU"][0] == pytest.approx(3e14 / 989e12)


def test_kernels_without_a_gpu_names_the_command_and_shows_what_is_active_and_compiled(
    dashboard: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vmae.dashboard.views import kernels as page_kernels

    shutil.copy(page_kernels.RESULTS / "aot.json", tmp_path)
    monkeypatch.setattr(page_kernels, "RESULTS", tmp_path)
    app = healthy(open_page("kernels"))
    assert page_kernels.SUITE in [c.value for c in app.code]
    assert {"Active on this machine", "Compiled ahead of time"} <= set(headings(app))
    healthy(app.pills(key="kernels_arch").set_value(app.pills(key="kernels_arch").options[0]).run())


def test_kernels_shows_the_cpu_step_against_its_baselines(
    dashboard: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vmae.dashboard.views import kernels as page_kernels

    app = healthy(open_page("kernels"))
    table = app.dataframe[0].value
    recorded = json.loads(page_kernels.CPU_STEP.read_text())
    assert table["cell"].tolist() == [c["cell"] for c in recorded["cells"]]
    peers = table[["transformers eager ms", "transformers sdpa ms"]].min(axis=1)
    assert (peers / table["ours ms"]).tolist() == pytest.approx(table["faster baseline / ours"].tolist())
    assert f"**{recorded['geometric_mean']:.2f}x**" in "".join(m.value for m in app.markdown)
    monkeypatch.setattr(page_kernels, "CPU_STEP", tmp_path / "bench_step.json")
    assert any(c.value.startswith("vmae bench step --json ") for c in healthy(open_page("kernels")).code)


def test_ours_stands_beside_the_published_curve_from_its_own_best(mini: Any) -> None:
    from vmae.dashboard.trials import OURS, beside_published, published_rows, trial_rows
    from vmae.experiments.runs import children, list_sweeps
    from vmae.experiments.tracking import store_at

    store = store_at(mini.runs_dir)
    (sweep,) = list_sweeps(store)
    points = beside_published(
        trial_rows(sweep, children(store, sweep)), published_rows(sweep.tags["vmae.definition"])
    )
    curves = {p["name"] for p in points}
    assert curves == {OURS, "published: Something-Something V2", "published: Kinetics-400"}
    for curve in curves:
        assert max(p["below"] for p in points if p["name"] == curve) == 0
    assert {p["value"] for p in points if p["name"] == OURS} == {"0.5", "0.75"}
    places = {p["value"]: p["order"] for p in points}
    assert sorted(places, key=lambda v: places[v]) == ["0.5", "0.75", "0.9"]
    ssv2 = {p["value"]: p["below"] for p in points if p["name"].endswith("V2")}
    assert ssv2 == {"0.75": pytest.approx(-1.6), "0.9": 0}


def test_the_errors_of_an_evaluated_run(
    dashboard: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np

    from vmae.core.measure.evaluate import VideoPrediction, summarise, write_predictions
    from vmae.experiments.runs import list_runs
    from vmae.experiments.tracking import Tracker, create_store, store_at

    videos = [str(v) for v in dashboard.videos]
    probs = [[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.4, 0.6]]
    found = [
        VideoPrediction(index=i, path=p, label=i % 2, probs=np.array(probs[i]), views=1, error="")
        for i, p in enumerate(videos)
    ]
    write_predictions(tmp_path / "predictions.csv", summarise(found, 2), ["left", "right"])
    store = store_at(tmp_path / "runs")
    create_store(store)
    with Tracker(store, store.layout.run("ev").path, name="ev", key="run:ev", kind="evaluate") as tracker:
        tracker.log_metrics({"test/top1": 0.75}, 0)
        tracker.log_artifact(tmp_path / "predictions.csv", "evaluation")
    assert len(list_runs(store)) == 1
    monkeypatch.setenv(VARIABLE, json.dumps({"runs_dir": str(tmp_path / "runs")}))
    app = healthy(open_page("runs"))
    table = app.dataframe[0].value
    assert table["accuracy"].tolist() == [0.75] and table["of"].tolist() == ["test accuracy"]
    assert "Errors" in headings(app)
    assert any(c.value.startswith("3 of 4 videos right") for c in app.caption)
    boxes = {b.label: b for b in app.selectbox}
    # The most frequent confusion, before anything is clicked.
    assert (boxes["Label"].value, boxes["Predicted"].value) == ("right", "left")
    name = Path(videos[1]).name
    assert any(c.value == f"1 videos: {name}" for c in app.caption)
    assert len(app.get("bidi_component")) == 1
    healthy(boxes["Predicted"].set_value("right").run())
    assert any(c.value == f"1 videos: {Path(videos[3]).name}" for c in app.caption)
    healthy(app.toggle(key="errors_least").set_value(True).run())


def test_a_vote_leaves_out_the_clip_s_own_group_and_says_so(dashboard: Any, tmp_path: Path) -> None:
    from vmae.dashboard.sources import DatasetEntry, read_samples
    from vmae.dashboard.views.features import _groups

    csv = tmp_path / "val.csv"
    csv.write_text("".join(f"{v} {i % 2}\n" for i, v in enumerate(dashboard.videos)))
    entry = DatasetEntry(id="x", label="x", csv=str(csv), data_root="")
    samples = read_samples(entry)
    groups, of = _groups(entry, samples)
    assert groups == [s.path for s in samples] and "no groups are known" in of
    rows = "".join(f"{v},{'ab'[i // 2]}\n" for i, v in enumerate(dashboard.videos))
    (tmp_path / "groups.csv").write_text("path,group\n" + rows)
    groups, of = _groups(entry, samples)
    assert groups == ["a", "a", "b", "b"] and of == "A clip's own group (groups.csv, 2 groups) does not vote."
