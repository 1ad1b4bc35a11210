"""Recommendations are a pure function: the same facts and speed, the same configuration and reasons."""

from dataclasses import replace

import pytest

from vmae.core.errors import InputError
from vmae.core.video.facts import ListFacts
from vmae.experiments.recommend import (
    EPOCHS,
    START_S,
    Choice,
    Machine,
    Speed,
    default_budget_s,
    most_epochs,
    predicted_s,
    recommend,
)

GESTURES = ListFacts(
    videos=144,
    class_counts=(14, 15) * 5,
    classes=10,
    names=("carret", "left", "right", "up"),
    frames=75,
    fps=30,
    height=128,
    width=170,
    still=0.76,
)
CPU = Machine(cores=2, memory=24 * 2**30)


def fast(config):
    return Speed(step_s=0.008, decode_s=0.05, cut_s=0.0003, threads=2)


def reason(found, what):
    return next(c for c in found.choices if c.what == what)


def test_the_background_is_tried_where_groups_are_known_and_looks_leave_it_open():
    plain = recommend("finetune", GESTURES, CPU, 150, fast)
    found = recommend("finetune", GESTURES, CPU, 150, fast, grouped=True)
    assert found.undecided and not plain.undecided
    assert found.config == plain.config
    assert reason(found, "background").reason.endswith("; both are tried inside the training list first")
    decided = found.with_background("keep", "tried")
    assert (decided.config.model.background, decided.undecided) == ("keep", False)
    assert reason(decided, "background") == Choice(what="background", value="keep", reason="tried")
    # Not where the scene tells the classes, and not in pre-training.
    told = replace(GESTURES, scene=0.9)
    assert not recommend("finetune", told, CPU, 150, fast, grouped=True).undecided
    assert not recommend("pretrain", GESTURES, CPU, 150, fast, grouped=True).undecided


def test_clips_of_key_frames_are_cut_around_them_and_never_kept_decoded():
    films = replace(GESTURES, key_frames=True, frames=27000, class_counts=(), classes=0, names=())
    found = recommend("pretrain", films, CPU, 150, fast)
    data = found.config.data
    assert not data.cache and data.sampling == "dense"
    assert data.frames * data.sampling_rate / films.fps == pytest.approx(2, abs=0.3)
    assert reason(found, "crop").reason.endswith("decoded as they are read")
    assert "data.workers" in reason(found, "threads, loader workers").reason
    assert recommend("pretrain", replace(films, key_frames=False), CPU, 150, fast).config.data.cache


def test_pretraining_on_the_same_list_is_not_offered_before_it_was_tried():
    said = reason(recommend("finetune", GESTURES, CPU, 150, fast), "pre-training first")
    assert said.value == "no"
    assert said.reason.startswith(
        "not offered: not tried on this list (vmae recommend LIST --try-pretraining"
    )


def test_a_short_list_on_a_cpu():
    found = recommend("finetune", GESTURES, CPU, 150, fast, held_out=73)
    c = found.config
    assert (c.job, c.recipe, c.data.sampling, c.data.flip) == (
        "finetune",
        "small_clips_finetune",
        "uniform",
        False,
    )
    assert c.train.best_by is None  # no epoch is chosen on the held-out list
    assert reason(found, "flip").reason == "a mirror may turn left, right into another class"
    assert "the median video has 2.5 s" in reason(found, "sampling").reason
    # 150 s less start (15), decoding 217 videos in two threads (5.4) and the end; 1.2 s an epoch.
    assert c.train.epochs == 100
    assert found.seconds == predicted_s(c, 144, 73, fast(c))
    assert 110 < found.seconds < 150
    assert found.memory > 500 * 2**20
    assert found == recommend("finetune", GESTURES, CPU, 150, fast, held_out=73)


@pytest.mark.parametrize("budget", [30, 60, 150, 600, 5000])
@pytest.mark.parametrize("job", ["pretrain", "finetune"])
def test_what_is_predicted_ends_in_the_budget(job, budget):
    found = recommend(job, GESTURES, CPU, budget, fast, held_out=73)
    assert found.seconds <= budget
    assert found.config.train.epochs in EPOCHS
    assert found.config.train.epochs <= most_epochs(job, 144)


def test_a_scene_that_tells_the_classes_is_kept():
    found = recommend("finetune", replace(GESTURES, still=1.0, scene=0.9), CPU, 150, fast)
    assert found.config.model.background == "keep"
    assert "90% of the videos" in reason(found, "background").reason
    # The two measured sets have 2% and 21%.
    assert (
        recommend("finetune", replace(GESTURES, scene=0.21), CPU, 150, fast).config.model.background
        == "subtract"
    )


def test_a_still_scene_is_taken_away_and_a_moving_camera_left_alone():
    found = recommend("finetune", GESTURES, CPU, 150, fast)
    assert found.config.model.background == "subtract"
    assert reason(found, "background").reason.startswith("76% of what the pixels vary by is the mean frame's")
    moving = recommend("finetune", replace(GESTURES, still=0.3), CPU, 150, fast)
    assert moving.config.model.background == "keep"
    assert recommend("pretrain", GESTURES, CPU, 150, fast).config.model.background == "keep"


def test_a_budget_that_ends_nothing_says_so():
    found = recommend("finetune", replace(GESTURES, videos=20_000), CPU, 60, fast)
    assert found.config.train.epochs == 1
    assert reason(found, "epochs").reason == "not even one ends in 1m 00s"
    assert found.seconds > 60


def test_more_time_than_is_of_use_is_not_spent():
    found = recommend("finetune", GESTURES, CPU, 36_000, fast)
    assert reason(found, "epochs").reason == ("more are of little use on 144 videos; it ends before 10h 00m")
    assert found.config.train.epochs == most_epochs("finetune", 144) == 200


def test_long_videos_are_seen_in_stretches_and_measured_at_five():
    found = recommend("finetune", replace(GESTURES, frames=1800, fps=30), CPU, 150, fast)
    data = found.config.data
    assert (data.sampling, data.frames * data.sampling_rate, data.segments) == ("dense", 120, 5)
    assert "the median video has 60 s: a clip shows 4.0 s of it, 5 clips are measured" in (
        reason(found, "sampling").reason
    )


@pytest.mark.parametrize(
    ("flip", "names", "on", "said"),
    [
        ("auto", ("jump", "sit"), False, "--flip yes says so"),
        ("yes", ("jump", "sit"), True, "--flip yes"),
        ("no", ("jump", "sit"), False, "--flip no"),
        ("yes", ("turn left", "sit"), True, "although a mirror may turn turn left into another class"),
    ],
)
def test_flips_are_asked_for(flip, names, on, said):
    found = recommend("finetune", replace(GESTURES, names=names), CPU, 150, fast, flip=flip)
    assert found.config.data.flip is on
    assert said in reason(found, "flip").reason


def test_few_videos_get_smaller_batches_and_tiny_ones_are_not_enlarged():
    few = replace(GESTURES, videos=30, class_counts=(15, 15), height=40, width=40)
    found = recommend("finetune", few, CPU, 150, fast)
    assert found.config.train.batch_size == 4
    assert found.config.optim.base_lr == pytest.approx(1.6e-2 * 2)
    assert found.config.data.short_side == 40


def test_a_gpu_gets_the_larger_model():
    slow_decoder = Speed(step_s=0.002, decode_s=0.05, cut_s=0.004)
    found = recommend("finetune", GESTURES, replace(CPU, gpu="H200"), 600, lambda c: slow_decoder)
    assert (found.config.recipe, found.config.model.embed_dim) == ("small_clips_gpu_finetune", 384)
    # Eight loader processes cut faster than a step takes: only the step counts.
    assert found.seconds < START_S + 144 * 0.05 + found.config.train.epochs * 128 * 0.0021 + 2


def test_an_initial_model_keeps_its_clip():
    start = recommend("finetune", GESTURES, CPU, 150, fast).config
    model = replace(start.model, frames=16)
    start = replace(start, init="x", model=model, data=replace(start.data, frames=16))
    found = recommend("finetune", GESTURES, CPU, 150, fast, start=start)
    assert found.config.model == model
    assert "as the initial weights have it" in reason(found, "clip, model").reason


def test_default_budget():
    assert [default_budget_s(n) for n in (50, 400, 800, 20_000)] == [150, 150, 300, 1200]


@pytest.mark.parametrize(
    ("facts", "budget", "message"),
    [
        (replace(GESTURES, class_counts=(144,), classes=1), 150, "expected labels of two classes or more"),
        (GESTURES, 0, "--budget: expected more than 0 seconds, got 0"),
    ],
)
def test_refusals(facts, budget, message):
    with pytest.raises(InputError, match=message):
        recommend("finetune", facts, CPU, budget, fast)
