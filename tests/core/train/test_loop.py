"""The training loop: the same numbers whenever it is stopped, however it is split."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vmae.core.errors import InputError, VideoError
from vmae.core.model.masking import MaskConfig
from vmae.core.model.videomae import VideoMAE, VideoMAEConfig
from vmae.core.numerics import derive_seed, make_generator
from vmae.core.train.config import TrainConfig, check_capturable
from vmae.core.train.finetune import Finetuning
from vmae.core.train.loop import Trainer
from vmae.core.train.optim import OptimConfig
from vmae.core.train.pretrain import Pretraining, pretrain
from vmae.core.train.state import list_states, load_newest_state
from vmae.core.train.task import silent
from vmae.core.train.watch import TrainingDiverged
from vmae.core.video.annotations import read_annotations
from vmae.core.video.clips import ClipDataset
from vmae.core.video.config import DataConfig
from vmae.core.weights.checkpoint import load_model

ROOT = Path(__file__).resolve().parents[3]
DATA = DataConfig(frames=4, sampling_rate=1, size=(32, 32), short_side=32, workers=0)
OPTIM = OptimConfig(base_lr=0.1, warmup_epochs=1)
TRAIN = TrainConfig(epochs=3, batch_size=6, log_every=1)
MASK = MaskConfig(ratio=0.75)


def dataset(folder: Path, data: DataConfig = DATA) -> ClipDataset:
    return ClipDataset(read_annotations(folder / "train.csv"), data, mode="train", seed=0)


def model(**changes: Any) -> VideoMAE:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return VideoMAE(
            VideoMAEConfig(
                frames=4, height=32, width=32, patch_size=8, embed_dim=32, depth=2, num_heads=2,
                decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2, **changes,
            )
        )  # fmt: skip


class Run:
    """One run and what it reported."""

    def __init__(self, folder: Path, run_dir: Path, **kwargs: Any) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.model = kwargs.pop("model", None) or model()
        settings = {
            "mask": MASK,
            "optim": OPTIM,
            "train": TRAIN,
            "dataset": kwargs.pop("dataset", None) or dataset(folder),
            "run_dir": run_dir,
            "report": lambda event, data: self.events.append((event, data)),
        }
        self.result = pretrain(model=self.model, **{**settings, **kwargs})

    def of(self, event: str) -> list[dict[str, Any]]:
        return [data for name, data in self.events if name == event]

    @property
    def losses(self) -> dict[int, float]:
        return {e["step"]: e["loss"] for e in self.of("step")}

    @property
    def weights(self) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in self.model.parameters()])


def stop_after(n: int) -> Any:
    calls = iter(range(1, 1000))
    return lambda: next(calls) == n


def test_a_run_reports_saves_and_learns(tiny_videos: Path, tmp_path: Path) -> None:
    run = Run(tiny_videos, tmp_path, train=replace(TRAIN, epochs=12))
    (start,) = run.of("start")
    assert (start["steps_per_epoch"], start["total_steps"], start["resumed"]) == (4, 48, False)
    assert sorted(run.losses) == list(range(1, 49))
    assert {"loss", "lr", "grad_norm", "clips_per_s", "data_wait", "peak_mem_gib"} <= set(run.of("step")[0])
    assert [e["epoch"] for e in run.of("epoch")] == list(range(1, 13))
    assert run.result.metrics["loss"] < 0.97 * run.result.history[0]["loss"]
    assert run.result.epochs == 12 and not run.result.stopped and run.result.skipped_steps == 0
    loaded, meta = load_model(run.result.model_path)
    assert meta["job"] == "pretrain" and meta["mask"]["ratio"] == 0.75
    assert torch.equal(loaded.state_dict()["mask_token"], run.model.state_dict()["mask_token"])


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(
    tiny_videos: Path, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    a = Run(tiny_videos, tmp_path / "a")
    torch.manual_seed(2)
    np.random.seed(3)
    before = torch.random.get_rng_state()
    b = Run(tiny_videos, tmp_path / "b")
    assert torch.equal(before, torch.random.get_rng_state()), "global state was touched"
    c = Run(tiny_videos, tmp_path / "c", train=replace(TRAIN, seed=1))
    assert a.losses == b.losses and torch.equal(a.weights, b.weights)
    assert a.losses != c.losses


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"train": replace(TRAIN, accumulate=2, ema_decay=0.9)},
        {"dataset": "repeats", "mask": MaskConfig(ratio=0.75, decoder_type="running_cell")},
        {"model": "drop_path", "optim": replace(OPTIM, clip_grad=0.5)},
    ],
    ids=["plain", "accumulate+ema", "repeats+dual masking", "drop path+clipping"],
)
def test_a_stopped_run_continues_to_the_same_bits(
    tiny_videos: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    def parts() -> dict[str, Any]:
        made = dict(changes)
        if made.get("dataset") == "repeats":
            made["dataset"] = dataset(tiny_videos, replace(DATA, repeats=2))
        if made.get("model") == "drop_path":
            made["model"] = model(drop_path=0.5)
        return made

    whole = Run(tiny_videos, tmp_path / "whole", **parts())
    losses: dict[int, float] = {}
    for stop in (1, 5, 1, 100):
        part = Run(tiny_videos, tmp_path / "parts", should_stop=stop_after(stop), **parts())
        losses |= part.losses
    assert losses == whole.losses
    assert torch.equal(part.weights, whole.weights)
    assert part.result.history == whole.result.history
    assert part.of("start")[0]["resumed"]


def test_accumulation_equals_one_large_batch(tiny_videos: Path, tmp_path: Path) -> None:
    one = Run(tiny_videos, tmp_path / "one")
    three = Run(tiny_videos, tmp_path / "three", train=replace(TRAIN, accumulate=3))
    for step, loss in one.losses.items():
        assert three.losses[step] == pytest.approx(loss, abs=1e-5)


def test_drop_path_ema_clipping_and_weight_decay_change_something(tiny_videos: Path, tmp_path: Path) -> None:
    plain = Run(tiny_videos, tmp_path / "plain")
    dropped = Run(tiny_videos, tmp_path / "drop", model=model(drop_path=0.5))
    clipped = Run(tiny_videos, tmp_path / "clip", optim=replace(OPTIM, clip_grad=1e-3))
    undecayed = Run(tiny_videos, tmp_path / "wd", optim=replace(OPTIM, weight_decay=0.0))
    averaged = Run(tiny_videos, tmp_path / "ema", train=replace(TRAIN, ema_decay=0.9))
    for other in (dropped, clipped, undecayed):
        assert not torch.equal(plain.weights, other.weights)
    # The average does not change training; what is saved is the average.
    assert torch.equal(plain.weights, averaged.weights)
    saved, _ = load_model(averaged.result.model_path)
    assert not torch.equal(saved.state_dict()["mask_token"], averaged.model.state_dict()["mask_token"])


def test_repeats_multiply_the_clips_but_not_the_learning_rate(tiny_videos: Path, tmp_path: Path) -> None:
    plain = Run(tiny_videos, tmp_path / "a")
    repeated = Run(tiny_videos, tmp_path / "b", dataset=dataset(tiny_videos, replace(DATA, repeats=2)))
    assert [e["lr"] for e in plain.of("step")] == [e["lr"] for e in repeated.of("step")]
    assert plain.losses != repeated.losses
    # Clips are counted as they come; an epoch is a pass over the videos.
    for run, repeats in ((plain, 1), (repeated, 2)):
        clips = run.result.clips_per_s * run.result.duration_s
        assert round(clips) == run.result.steps * TRAIN.batch_size * repeats
    assert [e["epoch"] for e in plain.of("step")] == [e["epoch"] for e in repeated.of("step")]
    assert [e["effective_epoch"] for e in repeated.of("step")] == [2 * e["epoch"] for e in plain.of("step")]


def test_bf16_and_fp16_train_close_to_fp32(tiny_videos: Path, tmp_path: Path) -> None:
    full = Run(tiny_videos, tmp_path / "fp32")
    for precision in ("bf16", "fp16"):
        half = Run(tiny_videos, tmp_path / precision, train=replace(TRAIN, precision=precision))
        assert half.of("start")[0]["precision"] == precision
        assert half.result.metrics["loss"] == pytest.approx(full.result.metrics["loss"], rel=0.05)
        assert half.losses != full.losses


@pytest.mark.slow
# torch's own: TorchDynamo looks at `.grad` behind a filter that a warning made an error goes past.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_a_compiled_run_is_continued_without_compiling(tiny_videos: Path, tmp_path: Path) -> None:
    plain = Run(tiny_videos, tmp_path / "plain")
    part = Run(tiny_videos, tmp_path / "run", train=replace(TRAIN, compile=True), should_stop=stop_after(5))
    rest = Run(tiny_videos, tmp_path / "run")
    assert rest.of("start")[0]["step"] == 5
    for step, loss in {**part.losses, **rest.losses}.items():
        assert loss == pytest.approx(plain.losses[step], abs=1e-4), step


def test_activation_checkpointing_changes_no_number(tiny_videos: Path, tmp_path: Path) -> None:
    plain = Run(tiny_videos, tmp_path / "plain", model=model(drop_path=0.3))
    again = Run(tiny_videos, tmp_path / "again", model=model(drop_path=0.3, checkpoint_activations=True))
    assert again.losses == plain.losses and torch.equal(again.weights, plain.weights)


def test_a_bad_file_is_left_out_and_counted(tiny_videos: Path, tmp_path: Path) -> None:
    for path in tiny_videos.iterdir():
        shutil.copy(path, tmp_path)
    (tmp_path / "03.mp4").write_bytes(b"not a video")
    run = Run(tmp_path, tmp_path / "run", dataset=dataset(tmp_path, replace(DATA, max_bad_share=0.2)))
    assert run.result.steps == 12
    assert [Path(p).name for p in run.result.bad_videos] == ["03.mp4"]


def test_a_batch_of_bad_files_only_is_a_step_without_an_update(tiny_videos: Path, tmp_path: Path) -> None:
    for path in tiny_videos.iterdir():
        shutil.copy(path, tmp_path)
    (tmp_path / "03.mp4").write_bytes(b"not a video")
    data = replace(DATA, max_bad_share=0.2)
    train = replace(TRAIN, batch_size=1, epochs=2)
    whole = Run(tmp_path, tmp_path / "whole", dataset=dataset(tmp_path, data), train=train)
    assert whole.result.steps == 48
    assert sum(math.isnan(v) for v in whole.losses.values()) == 2
    losses: dict[int, float] = {}
    for stop in (20, 17, 100):
        part = Run(
            tmp_path,
            tmp_path / "parts",
            dataset=dataset(tmp_path, data),
            train=train,
            should_stop=stop_after(stop),
        )
        losses |= part.losses
    np.testing.assert_array_equal(list(losses.values()), list(whole.losses.values()))
    assert torch.equal(part.weights, whole.weights)


class Poisoned(VideoMAE):
    """Gives NaN at the steps in `bad` (counted from 0)."""

    bad: tuple[int, ...] = ()
    calls = 0

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().forward(*args, **kwargs)
        if self.training:
            self.calls += 1
            if self.calls - 1 in self.bad:
                return loss * math.nan
        return loss


def poisoned(*bad: int) -> Poisoned:
    made = model()
    made.__class__ = Poisoned
    made.bad = bad  # type: ignore[attr-defined]
    return made  # type: ignore[return-value]


def test_nan_steps_are_skipped_counted_and_named(tiny_videos: Path, tmp_path: Path) -> None:
    run = Run(tiny_videos, tmp_path, model=poisoned(1, 2, 7))
    assert run.result.skipped_steps == 3 and run.result.steps == 12
    assert torch.isfinite(run.weights).all()
    assert math.isfinite(run.result.metrics["loss"])
    assert len([e for e in run.of("warning") if "step skipped" in e["text"]]) == 3
    named = json.loads((tmp_path / "bad_batches.json").read_text())
    assert [b["step"] for b in named] == [1, 2, 7] and all(len(b["paths"]) == 6 for b in named)


def test_a_skipped_step_changes_nothing(tiny_videos: Path, tmp_path: Path) -> None:
    run = Run(tiny_videos, tmp_path, model=poisoned(0), train=replace(TRAIN, epochs=1, batch_size=24))
    assert torch.equal(run.weights, torch.cat([p.detach().flatten() for p in model().parameters()]))


def test_nan_in_a_row_stops_the_run_and_names_the_files(tiny_videos: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingDiverged, match=r"3 steps in a row up to step 6.*bad_batches.json"):
        Run(tiny_videos, tmp_path, model=poisoned(1, 4, 5, 6), train=replace(TRAIN, max_bad_steps=3))
    assert [b["step"] for b in json.loads((tmp_path / "bad_batches.json").read_text())] == [1, 4, 5, 6]


def test_a_flat_loss_and_a_collapse_are_warned_of_once(tiny_videos: Path, tmp_path: Path) -> None:
    frozen = replace(OPTIM, base_lr=1e-12, min_lr=0.0)
    dead = model()
    with torch.no_grad():
        dead.decoder.head.weight.zero_()
        dead.decoder.head.bias.zero_()
    run = Run(tiny_videos, tmp_path, model=dead, optim=frozen, train=replace(TRAIN, epochs=6))
    texts = [e["text"] for e in run.of("warning")]
    assert len(texts) == 2
    assert "collapse" in texts[0] and "flat at the target's variance" in texts[1]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"batch_size": 5, "accumulate": 2}, "multiple of processes x train.accumulate .1 x 2.; got 5"),
        ({"batch_size": 25}, "at least one batch of train.batch_size = 25 clips; the training list has 24"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(
    tiny_videos: Path, tmp_path: Path, train: dict[str, int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Run(tiny_videos, tmp_path, train=replace(TRAIN, **train))


def test_a_checkpoint_of_another_run_is_refused(tiny_videos: Path, tmp_path: Path) -> None:
    Run(tiny_videos, tmp_path, train=replace(TRAIN, epochs=1))
    with pytest.raises(InputError, match="a run with seed = 5, got 0"):
        Run(tiny_videos, tmp_path, train=replace(TRAIN, epochs=1, seed=5))
    again = Run(tiny_videos, tmp_path, train=replace(TRAIN, epochs=1, seed=5), resume=False)
    assert not again.of("start")[0]["resumed"]
    # What was there is gone: a later start continues the new run.
    third = Run(tiny_videos, tmp_path, train=replace(TRAIN, epochs=1, seed=5))
    assert third.of("start")[0]["resumed"] and torch.equal(third.weights, again.weights)


def test_a_finished_run_is_not_trained_again(tiny_videos: Path, tmp_path: Path) -> None:
    first = Run(tiny_videos, tmp_path)
    second = Run(tiny_videos, tmp_path)
    assert second.losses == {} and second.result.history == first.result.history
    assert torch.equal(first.weights, second.weights)


def by_epoch(scores: list[float]) -> Any:
    return lambda epoch, module: {"score": scores[epoch - 1]}


def steps_kept(run_dir: Path) -> list[int]:
    return [int(p.name.removeprefix("step-")) for p in list_states(run_dir / "checkpoints")]


def test_the_epoch_of_the_lowest_loss_is_kept(tiny_videos: Path, tmp_path: Path) -> None:
    run = Run(tiny_videos, tmp_path, train=replace(TRAIN, epochs=4, checkpoint_every=2))
    losses = [h["loss"] for h in run.result.history]
    assert run.result.best_model_path == tmp_path / "best"
    _, meta = load_model(tmp_path / "best")
    # Looked at where a checkpoint is due: epochs 2 and 4.
    assert meta["epochs"] == min((2, 4), key=lambda e: losses[e - 1])
    assert meta["metrics"]["loss"] == losses[meta["epochs"] - 1]


def test_the_best_epoch_by_a_metric_stays_beside_the_last_checkpoints(
    tiny_videos: Path, tmp_path: Path
) -> None:
    def go(name: str, by: str | None = "auto", **more: Any) -> Run:
        train = replace(TRAIN, epochs=5, best_by=by, keep_last=1)
        scores = by_epoch([0.1, 0.6, 0.6, math.nan, 0.2])
        return Run(tiny_videos, tmp_path / name, train=train, after_epoch=scores, measured=("score",), **more)

    whole = go("whole")
    assert steps_kept(tmp_path / "whole") == [8, 20]
    best, meta = load_model(tmp_path / "whole" / "best")
    assert (meta["epochs"], meta["metrics"]["score"]) == (2, 0.6)
    assert not torch.equal(best.state_dict()["mask_token"], whole.model.state_dict()["mask_token"])
    # Stopped before and after the best epoch, it is the same one.
    for stop in (6, 6, 100):
        go("parts", should_stop=stop_after(stop))
    again, meta = load_model(tmp_path / "parts" / "best")
    assert steps_kept(tmp_path / "parts") == [8, 20] and meta["epochs"] == 2
    assert torch.equal(best.state_dict()["mask_token"], again.state_dict()["mask_token"])
    none = go("none", None)
    assert none.result.best_model_path is None and not (tmp_path / "none" / "best").exists()
    assert steps_kept(tmp_path / "none") == [20]
    with pytest.raises(InputError, match=r"one of auto, none, score, loss; got 'scor' .did you mean 'score'"):
        go("wrong", "scor")


def test_the_best_weights_are_the_averaged_ones(tiny_videos: Path, tmp_path: Path) -> None:
    run = Run(tiny_videos, tmp_path, train=replace(TRAIN, epochs=2, ema_decay=0.9))
    best, meta = load_model(tmp_path / "best")
    saved, _ = load_model(run.result.model_path)
    same = torch.equal(best.state_dict()["mask_token"], saved.state_dict()["mask_token"])
    assert same == (meta["epochs"] == 2)
    assert not torch.equal(best.state_dict()["mask_token"], run.model.state_dict()["mask_token"])


def test_a_graph_without_a_gpu_is_refused_before_anything_is_written(
    tiny_videos: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"train\.cuda_graph: expected a CUDA device, got cpu"):
        Run(tiny_videos, tmp_path, train=replace(TRAIN, cuda_graph=True))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_captured_run_has_the_losses_of_a_plain_one(tiny_videos: Path, tmp_path: Path) -> None:
    plain = Run(tiny_videos, tmp_path / "plain", device="cuda")
    captured = Run(tiny_videos, tmp_path / "graph", device="cuda", train=replace(TRAIN, cuda_graph=True))
    for step, loss in plain.losses.items():
        assert captured.losses[step] == pytest.approx(loss, rel=1e-2), step


def test_what_a_graph_needs_besides_a_gpu() -> None:
    gpu, graph = torch.device("cuda"), replace(TRAIN, cuda_graph=True)
    check_capturable(graph, gpu, varies=Pretraining.varies)
    refused: dict[str, tuple[TrainConfig, dict[str, Any]]] = {
        "pre-training, got finetune": (graph, {"varies": Finetuning.varies}),
        "one process, got 2": (graph, {"processes": 2}),
        "train.accumulate = 1, got 2": (replace(graph, accumulate=2), {}),
        "no drop path": (graph, {"draws": True}),
    }
    for message, (train, more) in refused.items():
        with pytest.raises(InputError, match=f"train.cuda_graph: expected {message}"):
            check_capturable(train, gpu, **more)


@pytest.mark.parametrize(
    ("field", "value"),
    [("epochs", 0), ("batch_size", 0), ("ema_decay", 1.0), ("checkpoint_every_steps", 0), ("seed", -1)],
)
def test_bad_values_are_refused(field: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"expected train\.{field} .*; got"):
        TrainConfig(**{field: value})  # type: ignore[arg-type]


def test_seeds_are_the_same_everywhere_and_differ_by_part() -> None:
    assert derive_seed(0, 1, "mask") == 8227991984855469637
    seeds = {derive_seed(a, b, w) for a in range(10) for b in range(10) for w in ("mask", "drop")}
    assert len(seeds) == 200
    assert torch.equal(
        torch.rand(3, generator=make_generator(1, 2)), torch.rand(3, generator=make_generator(1, 2))
    )


# Trains in a process of its own, saving every step, and appends each step's exact loss to a file. The process
# is killed with SIGKILL at random moments (in a step, in a save, between) and started again, `kills` times.
# The parent only imports and forks: a fresh interpreter for each start would take ten times as long.
HARNESS = """
import os, random, signal, sys, time
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_loop as t
import torch

folder, run_dir, kills, epochs = Path({folder!r}), Path({run_dir!r}), {kills}, {epochs}
log_path = run_dir.with_suffix(".log")

def train():
    log = open(log_path, "a", buffering=1)
    def report(event, data):
        if event == "step":
            log.write(f"{{data['step']}} {{float(data['loss']).hex()}}\\n")
    settings = replace(t.TRAIN, epochs=epochs, checkpoint_every_steps=1, ema_decay=0.99)
    run = t.Run(folder, run_dir, model=t.model(drop_path=0.2), train=settings, report=report)
    torch.save(run.weights, run_dir.with_suffix(".weights"))

def lines():
    return log_path.read_text().count("\\n") if log_path.exists() else 0

rng, done = random.Random(0), 0
while True:
    seen, pid = lines(), os.fork()
    if pid == 0:
        code = 1
        try:
            train()
            code = 0
        finally:
            os._exit(code)
    if done == kills:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    while lines() < seen + 2:
        time.sleep(0.001)
    time.sleep(rng.random() * 0.05)
    os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    done += os.WIFSIGNALED(status)
    print("killed at step", lines(), flush=True)
"""


def run_with_kills(folder: Path, run_dir: Path, kills: int, epochs: int) -> int:
    """Train with `kills` SIGKILLs; returns the kills that hit a living process."""
    script = HARNESS.format(
        tests=str(Path(__file__).parent), folder=str(folder), run_dir=str(run_dir), kills=kills, epochs=epochs
    )
    out = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=300,
    )
    return out.stdout.count("killed at step")


def check_killed_run(tiny_videos: Path, tmp_path: Path, kills: int, epochs: int) -> None:
    whole_dir, killed_dir = tmp_path / "whole", tmp_path / "killed"
    run_with_kills(tiny_videos, whole_dir, 0, epochs)
    assert run_with_kills(tiny_videos, killed_dir, kills, epochs) == kills

    def losses(run_dir: Path) -> list[tuple[str, str]]:
        # A line that the kill cut short is no line.
        text = run_dir.with_suffix(".log").read_text()
        return [(s, v) for s, v in (line.split(" ") for line in text.split("\n") if line.count(" ") == 1)]

    whole, killed = losses(whole_dir), losses(killed_dir)
    assert len(whole) == 4 * epochs
    wanted = dict(whole)
    # Steps done twice (before the kill and after the resume) gave the same bits both times.
    assert [pair for pair in killed if wanted.get(pair[0]) != pair[1]] == []
    assert dict(killed) == wanted
    assert torch.equal(
        torch.load(whole_dir.with_suffix(".weights")), torch.load(killed_dir.with_suffix(".weights"))
    )


def test_a_run_killed_twice_ends_with_the_same_bits(tiny_videos: Path, tmp_path: Path) -> None:
    check_killed_run(tiny_videos, tmp_path, kills=2, epochs=3)


@pytest.mark.slow
def test_a_run_killed_twelve_times_ends_with_the_same_bits(tiny_videos: Path, tmp_path: Path) -> None:
    check_killed_run(tiny_videos, tmp_path, kills=12, epochs=16)


FULL_DISK = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_loop as t
import resource, signal, warnings
from dataclasses import replace
warnings.simplefilter("always")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
def report(event, data):
    if event == "epoch" and data["epoch"] == 1:
        print("first epoch", flush=True)
    if event == "checkpoint" and not resource.getrlimit(resource.RLIMIT_FSIZE)[0] == 4096:
        # From the first checkpoint on no file may grow past 4 KiB: a full disk, for real.
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    if event == "warning":
        print(data["text"], flush=True)
run = t.Run(Path({folder!r}), Path({run_dir!r}), report=report)
print(run.result.steps, run.result.stopped)
"""


def test_training_goes_on_when_the_disk_is_full(tiny_videos: Path, tmp_path: Path) -> None:
    script = FULL_DISK.format(
        tests=str(Path(__file__).parent), folder=str(tiny_videos), run_dir=str(tmp_path / "run")
    )
    out = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    lines = out.stdout.splitlines()
    assert lines[0] == "first epoch" and lines[-1] == "12 False"
    assert [line for line in lines if "checkpoint NOT saved" in line and "File too large" in line]
    assert "training goes on, the last good one stays" in out.stderr
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-0000000004"]
    resumed = Run(tiny_videos, tmp_path / "run")
    assert resumed.of("start")[0]["step"] == 4 and resumed.result.steps == 12


def test_an_epoch_that_was_not_measured_is_not_saved_as_ended(tiny_videos: Path, tmp_path: Path) -> None:
    train = replace(TRAIN, checkpoint_every_steps=2, checkpoint_every=3)

    def failing(epoch: int, module: Any) -> dict[str, float]:
        if epoch == 2:
            raise RuntimeError("killed in validation")
        return {"score": float(epoch)}

    def measure(epoch: int, module: Any) -> dict[str, float]:
        return {"score": float(epoch)}

    whole = Run(tiny_videos, tmp_path / "whole", train=train, after_epoch=measure, measured=("score",))
    with pytest.raises(RuntimeError, match="killed in validation"):
        Run(tiny_videos, tmp_path / "parts", train=train, after_epoch=failing, measured=("score",))
    assert steps_kept(tmp_path / "parts") == [4, 6]
    rest = Run(tiny_videos, tmp_path / "parts", train=train, after_epoch=measure, measured=("score",))
    assert rest.of("start")[0]["step"] == 6
    assert rest.result.history == whole.result.history
    assert [h["score"] for h in rest.result.history] == [1, 2, 3]
    # Its end is saved with the epoch's number in it, where a step checkpoint was due.
    assert 8 in (int(Path(e["path"]).name.removeprefix("step-")) for e in rest.of("checkpoint"))


def test_a_checkpoint_from_before_an_epochs_end_is_measured_first(tiny_videos: Path, tmp_path: Path) -> None:
    """As older versions left them: saved at the last step, before validation."""
    whole = Run(tiny_videos, tmp_path / "whole", after_epoch=by_epoch([0.1, 0.2, 0.3]), measured=("score",))
    first = Run(tiny_videos, tmp_path / "parts", should_stop=stop_after(3))
    assert first.result.stopped
    state = load_newest_state(tmp_path / "parts" / "checkpoints")
    assert state is not None
    pretend = trainer(tiny_videos, tmp_path / "parts")
    pretend.begin(resume=True)
    pretend.step(iter_from(pretend, 3))
    pretend.checkpoint()
    rest = Run(tiny_videos, tmp_path / "parts", after_epoch=by_epoch([0.1, 0.2, 0.3]), measured=("score",))
    assert rest.of("start")[0]["step"] == 4
    assert [h["loss"] for h in rest.result.history] == [h["loss"] for h in whole.result.history]
    assert [h["score"] for h in rest.result.history] == [0.1, 0.2, 0.3]
    assert torch.equal(rest.weights, whole.weights)


def trainer(folder: Path, run_dir: Path) -> Trainer:
    made = model()
    task = Pretraining(model=made, mask=MASK, optim=OPTIM, train=TRAIN, report=silent, more=None, measured=())
    return Trainer(task, made, dataset(folder), optim=OPTIM, train=TRAIN, run_dir=run_dir)


def iter_from(made: Trainer, step: int) -> Any:
    made.loader.set_epoch(0, skip_batches=step)
    return iter(made.loader)


def test_weights_that_could_not_be_written_are_told(tiny_videos: Path, tmp_path: Path) -> None:
    (tmp_path / "model").write_text("in the way")
    with pytest.warns(UserWarning, match="model NOT saved"):
        run = Run(tiny_videos, tmp_path)
    assert "File exists" in run.result.unsaved
    (tmp_path / "model").unlink()
    assert Run(tiny_videos, tmp_path).result.unsaved == "" and (tmp_path / "model").is_dir()


def test_older_weights_are_never_taken_for_the_last(tiny_videos: Path, tmp_path: Path) -> None:
    """An interruption leaves a model; the end of the run replaces it, or it goes out of the way."""
    home = tmp_path / "run"
    Run(tiny_videos, home, should_stop=stop_after(5))
    shutil.copytree(home / "model", tmp_path / "interrupted")
    last = Run(tiny_videos, home).weights
    # Killed after the last checkpoint and before the weights were written.
    shutil.rmtree(home / "model")
    shutil.copytree(tmp_path / "interrupted", home / "model")
    again = Run(tiny_videos, home)
    assert torch.equal(again.weights, last) and load_model(home / "model")[1]["epochs"] == 3
    # A file cannot take a folder's name: the weights cannot be written.
    (home / "model" / "model.safetensors").unlink()
    (home / "model" / "model.safetensors" / "full").mkdir(parents=True)
    with pytest.warns(UserWarning, match="model NOT saved"):
        assert Run(tiny_videos, home).result.unsaved
    assert not (home / "model").exists() and (home / "model-older").is_dir()


def test_a_state_that_could_not_be_saved_is_no_saved_state(tiny_videos: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("in the way")
    with pytest.warns(UserWarning, match="checkpoint NOT saved"):
        run = Run(tiny_videos, tmp_path, should_stop=stop_after(5))
    assert run.result.stopped and "checkpoints" in run.result.unsaved
    with pytest.warns(UserWarning, match="checkpoint NOT saved"):
        done = Run(tiny_videos, tmp_path)
    assert not done.result.stopped and done.result.unsaved == ""  # its weights are there


def test_what_ends_the_reading_of_clips_costs_no_step(tiny_videos: Path, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    shutil.copytree(tiny_videos, videos)
    train = replace(TRAIN, checkpoint_every=10)

    def report(event: str, data: dict[str, Any]) -> None:
        if event == "step" and data["step"] == 5:
            for path in sorted(videos.glob("*.mp4"))[:20]:
                path.unlink()

    with pytest.raises(VideoError, match="too_many_bad_files"):
        Run(videos, tmp_path / "run", train=train, report=report, dataset=dataset(videos))
    saved = steps_kept(tmp_path / "run")
    assert saved and saved[-1] >= 5
    rest = Run(tiny_videos, tmp_path / "run", train=train)
    assert rest.of("start")[0]["step"] == saved[-1]
    whole = Run(tiny_videos, tmp_path / "whole", train=train)
    assert rest.result.history == whole.result.history
