"""Fine-tuning from pre-training against fine-tuning from fresh weights: equal steps, several seeds.

    python -m vmae.experiments.bench.finetune_vs_scratch --seeds 3 --output docs/results_finetune.md

Every seed pre-trains once (with `--pretrained MODEL` that one model serves all seeds), then fine-tunes three
times: from its pre-training, and from fresh weights with and without layer decay (which is made for
pre-trained weights: the better of the two is what counts). Same clips in the same order, same head, same
steps. Accuracy is that of the last epoch on the held-out list, centre clip: nothing is chosen by it. A run
that was interrupted continues; finished parts are not repeated.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vmae.core.config import override
from vmae.core.progress import Progress, progress
from vmae.core.train.task import Report, TrainResult
from vmae.core.video.demo_data import make_demo_data
from vmae.experiments import recipes
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.executors import Here
from vmae.experiments.layout import RunDir
from vmae.experiments.stages import finetune, pretrain
from vmae.experiments.stages.stage import Stage, Watch, Work
from vmae.experiments.storage import Storage

ARMS: dict[str, dict[str, Any]] = {
    "from pre-training": {},
    "from fresh weights": {},
    "from fresh weights, no layer decay": {"optim.layer_decay": None},
}


def shown(bar: Progress) -> Report:
    """The loop's step events on a bar."""
    at = 0

    def report(event: str, data: dict[str, Any]) -> None:
        nonlocal at
        if event == "start":
            at = data["step"]
        elif event == "step":
            bar.update(data["step"] - at, loss=data["loss"])
            at = data["step"]

    return report


def compare(
    pretraining: ExperimentConfig,
    finetuning: ExperimentConfig,
    folder: Path,
    seeds: int,
    pretrained: Path | None = None,
) -> list[dict[str, Any]]:
    """One row a seed and arm: `seed`, `arm`, `top1` (none for pre-training), `loss`, `steps`."""
    rows = []
    here = Here(Storage(folder))

    def train(stage: Stage, config: ExperimentConfig, home: RunDir, title: str) -> TrainResult:
        steps = config.train.epochs * (len(here.process.data(config).train) // config.train.batch_size)
        with progress(title, steps, unit="step", every_s=20) as bar:
            return here.train(stage, Work(config=config, home=home, watch=Watch(report=shown(bar))))

    for seed in range(seeds):
        model = pretrained
        if model is None:
            first = replace(pretraining, train=replace(pretraining.train, seed=seed, picture_every=0))
            home = RunDir(folder / f"pretrain-{seed}")
            result = train(pretrain.STAGE, first, home, f"seed {seed} pre-training")
            model = result.model_path
            loss = result.metrics["loss"]
            rows.append({"seed": seed, "arm": "pre-training", "loss": loss, "steps": result.steps})
        for arm, changes in ARMS.items():
            config = override(finetuning, {**changes, "train.seed": seed})
            name = arm.replace(" ", "-").replace(",", "")
            if arm == "from pre-training":
                config = replace(config, init=str(model))
            tuned = train(finetune.STAGE, config, RunDir(folder / f"{name}-{seed}"), f"seed {seed} {arm}")
            rows.append(
                {
                    "seed": seed,
                    "arm": arm,
                    "top1": tuned.metrics["val/top1"],
                    "loss": tuned.metrics["loss"],
                    "steps": tuned.steps,
                }
            )
            (folder / "rows.json").write_text(json.dumps(rows, indent=1))
    return rows


def as_markdown(
    rows: list[dict[str, Any]],
    command: str,
    pretraining: ExperimentConfig,
    finetuning: ExperimentConfig,
    *,
    videos: tuple[int, int],
    classes: int,
    shared: bool,
) -> str:
    """The results page: what was run, the table, every seed's number."""
    once = "one pre-training, seed 0, for all rows" if shared else "one pre-training a seed"
    lines = [
        "# Fine-tuning from pre-training against fresh weights",
        "",
        f"Command: `{command}` (torch {torch.__version__}, {torch.get_num_threads()} thread(s), CPU).",
        "",
        f"Built-in data set: {videos[0]} training and {videos[1]} held-out videos, {classes} classes of "
        f"motion, chance {1 / classes:.1%}. Model and clips of `{pretraining.recipe}` "
        f"({pretraining.model.grid.describe()}, {pretraining.model.depth} blocks of "
        f"{pretraining.model.embed_dim}); pre-training on the same training videos without labels for "
        f"{pretraining.train.epochs} epochs ({once}). Fine-tuning: `{finetuning.recipe}`, "
        f"{finetuning.train.epochs} epochs of {finetuning.train.batch_size} clips a step in every row. "
        "Accuracy: last epoch, held-out videos, centre clip.",
        "",
        "| fine-tuning | steps | top-1 mean | lowest to highest | each seed |",
        "|---|---|---|---|---|",
    ]
    for arm in ARMS:
        mine = [r for r in rows if r["arm"] == arm]
        scores = [r["top1"] for r in mine]
        each = ", ".join(f"{s:.1%}" for s in scores)
        lines.append(
            f"| {arm} | {mine[0]['steps']} | **{statistics.mean(scores):.1%}** | "
            f"{min(scores):.1%} to {max(scores):.1%} | {each} |"
        )
    ahead = [_lead(rows, seed) for seed in sorted({r["seed"] for r in rows})]
    points = ", ".join(f"{100 * a:+.1f}" for a in ahead)
    lines += [
        "",
        f"Pre-training is ahead in {sum(a > 0 for a in ahead)} of {len(ahead)} seeds: {points} points of "
        "top-1 over the better of the two ways to start fresh.",
    ]
    return "\n".join(lines) + "\n"


def _lead(rows: list[dict[str, Any]], seed: int) -> float:
    """Top-1 from pre-training less that of the better fresh start, of one seed."""
    scores = {r["arm"]: r["top1"] for r in rows if r["seed"] == seed and "top1" in r}
    first, *fresh = ARMS
    return float(scores[first] - max(scores[arm] for arm in fresh))


def main() -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("runs/finetune_vs_scratch"))
    parser.add_argument("--data", default="", help="folder of the built-in data set (default: the recipe's)")
    parser.add_argument("--pretrained", type=Path, default=None, help="model folder that serves all seeds")
    parser.add_argument("--pretrain-epochs", type=int, default=None)
    parser.add_argument("--epochs", type=int, default=None, help="of fine-tuning")
    parser.add_argument("--output", type=Path, default=None)
    arguments = parser.parse_args()
    pretraining, finetuning = recipes.get("demo_pretrain"), recipes.get("demo_finetune")
    command = f"python -m vmae.experiments.bench.finetune_vs_scratch --seeds {arguments.seeds}"
    if arguments.pretrain_epochs:
        pretraining = replace(pretraining, train=replace(pretraining.train, epochs=arguments.pretrain_epochs))
        command += f" --pretrain-epochs {arguments.pretrain_epochs}"
    if arguments.epochs:
        finetuning = replace(finetuning, train=replace(finetuning.train, epochs=arguments.epochs))
        command += f" --epochs {arguments.epochs}"
    folder = Path(arguments.data or Path(pretraining.data.train_csv).parent)
    make_demo_data(folder)
    lists = {"data.train_csv": str(folder / "train.csv"), "data.val_csv": str(folder / "val.csv")}
    pretraining, finetuning = override(pretraining, lists), override(finetuning, lists)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if arguments.pretrained:
        command += " --pretrained MODEL"
    rows = compare(pretraining, finetuning, arguments.folder, arguments.seeds, arguments.pretrained)
    data = Here(Storage(arguments.folder)).process.data(finetuning)
    assert data.val is not None
    text = as_markdown(
        rows,
        command,
        pretraining,
        finetuning,
        videos=(len(data.train), len(data.val)),
        classes=data.num_classes,
        shared=arguments.pretrained is not None,
    )
    print(text)
    if arguments.output is not None:
        arguments.output.write_text(text)


if __name__ == "__main__":
    main()
