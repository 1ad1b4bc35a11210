"""Action detection on the miniature AVA: frame-mAP of a detector trained from fresh weights, and of chance.

`python -m vmae.experiments.bench.detection --out FOLDER`
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vmae.core.measure.detect import detect, proposed_people, score_detections
from vmae.core.model.detector import VideoDetector, VideoDetectorConfig
from vmae.core.train.config import TrainConfig
from vmae.core.train.detect import DetectConfig, train_detector
from vmae.core.train.optim import OptimConfig
from vmae.core.train.task import Report, silent
from vmae.core.video.annotations import read_annotations
from vmae.core.video.clips import ClipDataset
from vmae.core.video.coco import read_proposals
from vmae.core.video.config import DataConfig
from vmae.core.video.demo_boxes import ACTIONS, DemoBoxesConfig, make_demo_boxes
from vmae.core.video.whole import WholeFrames

CLASSES = range(1, len(ACTIONS) + 1)


@dataclass(frozen=True, kw_only=True)
class DetectionBench:
    """Frame-mAP at IoU 0.5 over the eight actions of the held-out films."""

    history: list[tuple[int, float]]
    """Epoch and mAP on the annotated boxes."""
    proposals: float
    """Of the last epoch, on the made-up detector's people with a score of at least 0.8."""
    chance: float
    """Of random scores on the annotated boxes."""


def bench_detection(
    folder: Path,
    *,
    films: DemoBoxesConfig | None = None,
    epochs: int = 30,
    eval_every: int = 5,
    dim: int = 128,
    report: Report = silent,
) -> DetectionBench:
    """Make the films in `folder` (or take those there), train, and measure."""
    films = films or DemoBoxesConfig(train_films=100, val_films=30, size=64)
    root = make_demo_boxes(folder / "films", films)
    side = films.size
    data = DataConfig(
        frames=8, sampling_rate=4, size=(side, side), short_side=side, augment="none", workers=0
    )
    train, held_out = (read_annotations(root / f"{s}.csv", root / "films") for s in ("train", "val"))
    val = WholeFrames(held_out, data, multiple=8)
    # As the demo's recipe: tubelets of four frames hold motion, which is learnt in minutes.
    config = VideoDetectorConfig(
        frames=8, height=side, width=side, patch_size=8, tubelet_size=4, embed_dim=dim, depth=3, num_heads=4,
        mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25),
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = VideoDetector(config, len(ACTIONS))
    history: list[tuple[int, float]] = []

    def heard(event: str, values: dict[str, Any]) -> None:
        if event == "epoch" and "val/frame_map" in values:
            history.append((int(values["epoch"]), values["val/frame_map"]))
        report(event, values)

    train_detector(
        model=model,
        config=DetectConfig(num_classes=len(ACTIONS), eval_every=eval_every, drop_path=0.0),
        dataset=ClipDataset(train, data, "train", 0),
        val=val,
        optim=OptimConfig(
            base_lr=1.6e-2, min_lr=0.0, warmup_epochs=1, betas=(0.9, 0.999), layer_decay=0.75, clip_grad=1.0
        ),
        train=TrainConfig(epochs=epochs, batch_size=16),
        run_dir=folder / "run",
        classes=CLASSES,
        report=heard,
    )
    people = proposed_people(read_proposals(root / "people_val.csv"))
    found = detect(model, val)
    random = np.random.default_rng(0).random(found.scores.shape).astype(np.float32)
    return DetectionBench(
        history=history,
        proposals=score_detections(detect(model, val, people), CLASSES).mean_ap,
        chance=score_detections(replace(found, scores=random), CLASSES).mean_ap,
    )


def main() -> None:
    """Run it and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="Folder for films and run.")
    parser.add_argument("--epochs", type=int, default=30)
    options = parser.parse_args()
    found = bench_detection(options.out, epochs=options.epochs)
    print("| epoch | frame-mAP, annotated boxes |\n|---|---|")
    for epoch, value in found.history:
        print(f"| {epoch} | {value:.3f} |")
    print(f"\nproposals: {found.proposals:.3f}; chance: {found.chance:.3f}")


if __name__ == "__main__":
    main()
