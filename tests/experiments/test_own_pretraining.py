"""Whether pre-training first pays: what is compared, for how long, what numbers allow, and what is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vmae.cli.try_pretraining import try_pretraining
from vmae.core.errors import InputError
from vmae.core.measure.statistics import interval, paired
from vmae.core.video.annotations import read_annotations
from vmae.core.video.facts import list_facts
from vmae.experiments import own_pretraining
from vmae.experiments.advice import Advice
from vmae.experiments.answers import answers_of
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.layout import RunsDir
from vmae.experiments.outlook import Outlook
from vmae.experiments.own_pretraining import Arms, plan, pretraining_of, told
from vmae.experiments.recipes.small_clips import small_clips_finetune
from vmae.experiments.recommend import PRETRAINING, Choice, Machine, Recommendation, Speed, epoch_s
from vmae.experiments.tracking import local_store

SPEEDS = (
    Speed(step_s=0.010, decode_s=0.05, cut_s=0.0002),
    Speed(step_s=0.006, decode_s=0.05, cut_s=0.0002),
)


def arms_of(seconds: float, videos: int = 144) -> Arms:
    config = small_clips_finetune()
    return plan(config, pretraining_of(config, gpu=False), videos, seconds, SPEEDS)


def test_both_ways_get_the_same_time_on_the_same_clips() -> None:
    found = arms_of(600)
    fresh, own, first = (
        c.train.epochs * epoch_s(c, 96, 0, s)
        for c, s in ((found.fresh, SPEEDS[0]), (found.own, SPEEDS[0]), (found.first, SPEEDS[1]))
    )
    assert fresh == pytest.approx(own + first, rel=0.01)
    assert own == pytest.approx(first, rel=0.05)
    assert 560 < found.total_s() + 15 + 144 * 0.05 <= 600
    assert found.first.model == found.own.model == found.fresh.model
    assert found.first.data == found.own.data == found.fresh.data
    assert found.fresh.train == replace(found.own.train, epochs=found.fresh.train.epochs, checkpoint_every=9)
    assert found.first.job == "pretrain" and found.first.monitor.share == 0


def test_no_more_than_fresh_weights_have_a_use_for_and_no_less_than_an_epoch_of_each() -> None:
    found = arms_of(100_000)
    assert found.fresh.train.epochs in (199, 200)  # `most_epochs` of 96 videos
    with pytest.raises(InputError, match=r"an epoch of each of 9 trainings, about 3\ds, got 20s"):
        arms_of(20)
    assert arms_of(600, videos=20).fresh.train.batch_size == 2  # of 13 videos


@pytest.mark.parametrize(
    ("fresh", "own", "offered", "end"),
    [
        (50, 70, True, "offered"),
        (50, 54, False, "not offered: not shown to be better"),
        (70, 50, False, "not offered: fresh weights are better"),
        (5, 20, False, "not offered: neither is shown to beat chance (20.0%)"),
    ],
)
def test_it_is_offered_only_where_the_interval_lies_above_zero(
    fresh: int, own: int, offered: bool, end: str
) -> None:
    right = [(np.arange(100) < share).astype(float) for share in (fresh, own)]
    numbers = interval(right[0]), interval(right[1]), paired(right[1], right[0])
    found = told(*numbers, 0.2, arms_of(600), 600, grouped=True)
    assert found.offered is offered and found.reason.endswith(f", {end}")
    assert "tried on 100 videos of the training list, 3 parts of whole groups" in found.reason
    assert f"{fresh}.0% [" in found.reason and f"{own}.0% [" in found.reason
    base = Recommendation(
        config=small_clips_finetune(),
        choices=(Choice(what=PRETRAINING, value="no", reason="not tried"),),
        seconds=0,
        memory=0,
        speed=SPEEDS[0],
    )
    (choice,) = own_pretraining.with_verdict(base, found).choices
    assert choice.value == ("offered" if offered else "no")
    assert choice.reason.endswith("--try-pretraining writes both configurations") is offered
    assert own_pretraining.with_verdict(base, None) == base


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes by where a dot goes, in videos of nine groups."""
    folder, rng = tmp_path_factory.mktemp("own"), np.random.default_rng(0)
    lines, table = [], ["path,group"]
    for i in range(36):
        clip = np.full((8, 24, 24, 3), rng.integers(80, 120), np.uint8)
        for t in range(8):
            x = 2 * t + 2 if i % 2 else 18 - 2 * t
            clip[t, 8:14, x : x + 5] = 200
        np.save(folder / f"{i}.npy", clip)
        lines.append(f"{i}.npy {i % 2}\n")
        table.append(f"{i}.npy,g{i // 4}")
    (folder / "train.csv").write_text("".join(lines))
    (folder / "groups.csv").write_text("\n".join(table) + "\n")
    return folder / "train.csv"


def advice_on(listed: Path) -> Advice:
    made = small_clips_finetune()
    config = replace(
        made,
        model=replace(made.model, height=24, width=24, depth=1, embed_dim=32, num_heads=2),
        data=replace(made.data, size=(24, 24), short_side=24, train_csv=str(listed), val_csv="/no/val.csv"),
        train=replace(made.train, batch_size=4),
    )
    found = Recommendation(config=config, choices=(), seconds=0, memory=0, speed=SPEEDS[0])
    return Advice(
        found=found,
        lists=list_facts(read_annotations(listed)),
        held_out=0,
        machine=Machine(cores=1, memory=2**30),
        budget_s=150,
        outlook=Outlook(line=""),
    )


def test_a_trial_trains_inside_the_training_list_and_is_remembered(
    listed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    advice, store = advice_on(listed), local_store(tmp_path / "runs")
    config, runs, cpu = advice.found.config, store.layout, torch.device("cpu")
    assert own_pretraining.remembered(config, runs) is None
    found = try_pretraining(advice, store, 19, cpu)
    said = capsys.readouterr().err
    assert "part 1 of 3, fresh weights (training 1 of 9); about " in said
    assert "part 3 of 3, fine-tuning from it (training 9 of 9)" in said
    assert "folds of whole groups of " in said and "tried on 36 videos of the training list" in found.reason
    # In a store of its own: no run stands among those of the project.
    assert not runs.runs() and not list(runs.spools())
    (place,) = (p for p in runs.tried.iterdir() if p.is_dir())
    inside = RunsDir(place)
    own = ExperimentConfig.load(inside.run("own-fold1-seed0").config)
    first = ExperimentConfig.load(inside.run("pretrain-fold1").config)
    assert first.data.train_csv == own.data.train_csv and own.init == str(inside.run("pretrain-fold1").model)
    trained = {s.path for s in read_annotations(first.data.train_csv)}
    held_out = {s.path for s in read_annotations(own.data.test_csv)}
    assert not trained & held_out and len(trained | held_out) == 36 and own.data.val_csv == ""
    answers = [answers_of(inside.run(name)) for name in ("fresh", "own")]
    assert all(a is not None and len(a.paths) == 36 for a in answers)
    # The weights are gone, and nothing is trained again, unless more time is given for it.
    assert not list(place.rglob("*.safetensors")) and not list(place.rglob("checkpoints"))
    assert try_pretraining(advice, store, 18, cpu) == found == own_pretraining.remembered(config, runs)
    assert capsys.readouterr().err == ""
    np.save(listed.with_name("0.npy"), np.zeros((8, 24, 24, 3), np.uint8))
    assert own_pretraining.remembered(config, runs) is None


def test_a_list_of_two_groups_cannot_be_parted(listed: Path, tmp_path: Path) -> None:
    few = tmp_path / "train.csv"
    few.write_text("".join(f"{listed.parent}/{i}.npy {i % 2}\n" for i in range(12)))
    table = "".join(f"{listed.parent}/{i}.npy,g{i // 6}\n" for i in range(12))
    (tmp_path / "groups.csv").write_text(f"path,group\n{table}")
    with pytest.raises(InputError, match="a training list of 3 groups or more, got 2"):
        try_pretraining(advice_on(few), local_store(tmp_path / "runs"), 60, torch.device("cpu"))
