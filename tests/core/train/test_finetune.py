"""Fine-tuning: it learns, resumes to the same bits, and every option does something."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from vmae.core.errors import InputError
from vmae.core.model.classifier import VideoClassifier, VideoClassifierConfig
from vmae.core.train.config import TrainConfig
from vmae.core.train.finetune import (
    DistillConfig,
    FinetuneConfig,
    divergence,
    finetune,
    soft_cross_entropy,
)
from vmae.core.train.mixing import MixConfig, soft_targets
from vmae.core.train.optim import OptimConfig
from vmae.core.train.task import TrainResult
from vmae.core.video.annotations import read_annotations
from vmae.core.video.clips import ClipDataset
from vmae.core.video.config import DataConfig
from vmae.core.weights.checkpoint import load_model

DATA = DataConfig(frames=4, sampling_rate=1, size=(32, 32), short_side=32, augment="none", workers=0)
OPTIM = OptimConfig(base_lr=0.1, warmup_epochs=1, betas=(0.9, 0.999), layer_decay=0.75)
TRAIN = TrainConfig(epochs=3, batch_size=8, log_every=1)
PLAIN = FinetuneConfig(drop_path=0.0, label_smoothing=0.0, mix=MixConfig(mixup=0.0, cutmix=0.0))


def classifier(drop_path: float = 0.0, num_classes: int = 4) -> VideoClassifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = VideoClassifierConfig(
            frames=4, height=32, width=32, patch_size=8,
            embed_dim=32, depth=2, num_heads=2, drop_path=drop_path,
        )  # fmt: skip
        return VideoClassifier(config, num_classes)


def run(
    folder: Path, run_dir: Path, *, config: FinetuneConfig = PLAIN, data: DataConfig = DATA, **kwargs: Any
) -> tuple[VideoClassifier, TrainResult, list[dict[str, Any]]]:
    model = kwargs.pop("model", None) or classifier()
    epochs: list[dict[str, Any]] = []
    result = finetune(
        model=model,
        config=config,
        dataset=ClipDataset(read_annotations(folder / "train.csv"), data, "train", 0),
        val=ClipDataset(read_annotations(folder / "val.csv"), data, "val", 0),
        run_dir=run_dir,
        report=lambda event, values: epochs.append(values) if event == "epoch" else None,
        **{"optim": OPTIM, "train": TRAIN, **kwargs},
    )
    return model, result, epochs


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_it_learns_keeps_the_best_epoch_and_the_class_names(tiny_videos: Path, tmp_path: Path) -> None:
    names = ["left", "right", "up", "down"]
    _, result, epochs = run(
        tiny_videos, tmp_path, train=replace(TRAIN, epochs=25, checkpoint_every=25), labels=names
    )
    assert result.metrics["loss"] < 0.7 * result.history[0]["loss"]
    scores = [e["val/top1"] for e in epochs]
    # The held-out list is part of the training list here: what is learnt shows.
    assert max(scores) > 0.5
    assert result.best_model_path is not None
    best, meta = load_model(result.best_model_path)
    assert isinstance(best, VideoClassifier)
    assert meta["epochs"] == scores.index(max(scores)) + 1 and meta["labels"] == names
    assert meta["sampling"] == {"sampling": "dense", "sampling_rate": 1, "fps": 0.0}


def test_a_stopped_fine_tuning_continues_to_the_same_bits(tiny_videos: Path, tmp_path: Path) -> None:
    config = FinetuneConfig(label_smoothing=0.1)
    data = replace(
        DATA,
        repeats=2,
        augment="random_resized_crop",
        rand_augment="rand-m7-n4-mstd0.5-inc1",
        random_erasing=0.5,
    )
    train = replace(TRAIN, ema_decay=0.9)

    def go(run_dir: str, stop: int = 0) -> tuple[VideoClassifier, TrainResult, Any]:
        calls = iter(range(1, 100))
        return run(
            tiny_videos,
            tmp_path / run_dir,
            config=config,
            data=data,
            train=train,
            model=classifier(drop_path=0.3),
            should_stop=lambda: next(calls) == stop,
        )

    whole, result, _ = go("whole")
    for stop in (2, 3, 0):
        part, continued, _ = go("part", stop)
    assert torch.equal(weights(whole), weights(part))
    assert continued.history == result.history


def test_every_option_changes_the_weights(tiny_videos: Path, tmp_path: Path) -> None:
    plain, _, _ = run(tiny_videos, tmp_path / "plain")
    changed = {
        "smoothing": {"config": replace(PLAIN, label_smoothing=0.2)},
        "mixup": {"config": replace(PLAIN, mix=MixConfig(cutmix=0.0))},
        "cutmix": {"config": replace(PLAIN, mix=MixConfig(mixup=0.0))},
        "layer decay": {"optim": replace(OPTIM, layer_decay=None)},
        "drop path": {"model": classifier(drop_path=0.5)},
        "flip": {"data": replace(DATA, flip=True)},
        "frozen": {"config": replace(PLAIN, freeze_encoder=True)},
    }
    for name, change in changed.items():
        other, _, _ = run(tiny_videos, tmp_path / name, **change)  # type: ignore[arg-type]
        assert not torch.equal(weights(plain), weights(other)), name


def test_a_frozen_encoder_stays_as_it_was(tiny_videos: Path, tmp_path: Path) -> None:
    model, _, _ = run(tiny_videos, tmp_path, config=replace(PLAIN, freeze_encoder=True))
    before = classifier()
    assert torch.equal(weights(model.encoder), weights(before.encoder))
    assert not torch.equal(model.head.weight, before.head.weight)


def test_soft_cross_entropy_is_cross_entropy_with_smoothing() -> None:
    logits, labels = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 5
    ours = soft_cross_entropy(logits, soft_targets(labels, 5, 0.1))
    theirs = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
    assert float(ours) == pytest.approx(float(theirs), abs=1e-6)


def test_a_label_without_a_class_is_refused(tiny_videos: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected labels 0 to 2 in the training list; got 3"):
        run(tiny_videos, tmp_path, model=classifier(num_classes=3))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [("drop_path", 1.0), ("label_smoothing", -0.1), ("init_scale", 0.0), ("eval_every", -1)],
)
def test_bad_values_are_refused(field: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"expected finetune\.{field} .*; got"):
        FinetuneConfig(**{field: value})  # type: ignore[arg-type]


def test_divergence_equals_a_hand_value_and_is_nothing_between_equals() -> None:
    teacher, student = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    p = torch.tensor([1.0, 0.0]).softmax(0)  # at temperature 2
    by_hand = 4 * (p * (p / 0.5).log()).sum()
    torch.testing.assert_close(divergence(student, teacher, 2.0), by_hand)
    assert float(divergence(teacher, teacher, 3.0)) == 0


def test_a_student_learns_what_its_teacher_says_and_not_the_labels(tiny_videos: Path, tmp_path: Path) -> None:
    """A teacher that always names one class: by its weight alone the student does so too."""
    teacher = classifier()
    with torch.no_grad():
        teacher.head.weight.zero_()
        teacher.head.bias.copy_(torch.tensor([0.0, 0.0, 6.0, 0.0]))
    before = weights(teacher)
    taught = replace(PLAIN, distill=DistillConfig(teacher="it", weight=1.0, temperature=1.0))
    student, _, epochs = run(tiny_videos, tmp_path / "run", config=taught, teacher=teacher)
    clips = ClipDataset(read_annotations(tiny_videos / "val.csv"), DATA, "val", 0)
    video = torch.stack([torch.as_tensor(clips[i]["clip"]) for i in range(len(clips))])
    video = video.movedim(-1, 1) if video.shape[-1] == 3 else video
    assert set(student.eval()(video).argmax(1).tolist()) == {2}
    assert epochs[-1]["loss"] < 0.8 * epochs[0]["loss"]
    assert torch.equal(weights(teacher), before)


def test_a_teacher_of_other_clips_or_classes_is_refused(tiny_videos: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected 4 classes, got 5"):
        run(tiny_videos, tmp_path / "a", teacher=classifier(num_classes=5))
    other = VideoClassifier(replace(classifier().config, height=16, width=16, depth=1), 4)
    with pytest.raises(InputError, match="expected clips of height 32, got 16"):
        run(tiny_videos, tmp_path / "b", teacher=other)
