"""`vmae predict`: what a classifier says of videos."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from vmae.cli.options import runs_dir_option


@click.command()
@click.argument("videos", nargs=-1, required=True, metavar="VIDEO...")
@click.option(
    "--checkpoint",
    required=True,
    help="Fine-tuned model: a run's name, a path, a name of `vmae zoo list`, or hf://org/name.",
)
@click.option(
    "--labels",
    "labels_file",
    type=click.Path(path_type=Path),
    help="Class names, one a line in the order of the labels.  [default: the checkpoint's]",
)
@click.option("--top", default=5, show_default=True, type=click.IntRange(1), help="How many classes to show.")
@click.option("--segments", default=1, show_default=True, type=click.IntRange(1), help="Temporal views.")
@click.option("--crops", default=1, show_default=True, type=click.IntRange(1), help="Spatial crops of each.")
@click.option(
    "--sampling-rate",
    type=click.IntRange(1),
    help="Stride between frames.  [default: the checkpoint's, or 4]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@runs_dir_option
def predict(
    videos: tuple[str, ...],
    checkpoint: str,
    labels_file: Path | None,
    top: int,
    segments: int,
    crops: int,
    sampling_rate: int | None,
    as_json: bool,
    runs_dir: Path | None,
) -> None:
    """Classify videos: the most probable classes of each, softmax averaged over segments x crops views.

    A video that cannot be read is named on its line; the others are still classified, and the exit code is 2.
    """
    from dataclasses import replace

    import numpy as np

    from vmae.core.measure.evaluate import evaluate
    from vmae.core.video.clips import ClipDataset
    from vmae.core.video.samples import Sample
    from vmae.core.weights.models import expect_classes
    from vmae.experiments import run
    from vmae.experiments.tracking import store_at
    from vmae.experiments.weights import config_of_model, load_model_at

    model, meta, notes = load_model_at(store_at(runs_dir), checkpoint)
    model = expect_classes(model, meta, checkpoint)
    names = _names(labels_file, meta, model.num_classes)
    for note in notes:
        click.echo(f"note: {note}", err=True)
    data = config_of_model(model, meta).data
    data = replace(
        data,
        sampling_rate=sampling_rate or data.sampling_rate,
        fps=0.0 if sampling_rate else data.fps,
        segments=segments,
        crops=crops,
        workers=0,
        bad_eval="count",
    )
    dataset = ClipDataset([Sample(path=v, label=0) for v in videos], data, "test")
    result = evaluate(
        model, dataset, num_classes=model.num_classes, batch_size=1, device=run.default_device()
    )
    rows: list[dict[str, Any]] = []
    for p in result.predictions:
        if p.probs is None:
            rows.append({"path": p.path, "error": p.error})
            continue
        order = np.argsort(-p.probs, kind="stable")[:top]
        found = [{"class": names[c], "index": int(c), "prob": float(p.probs[c])} for c in order]
        rows.append({"path": p.path, "top": found})
    if as_json:
        click.echo(json.dumps(rows, indent=1))
    else:
        for row in rows:
            if "error" in row:
                click.echo(f"{row['path']}: cannot be read: {row['error']}", err=True)
                continue
            click.echo(row["path"])
            for entry in row["top"]:
                click.echo(f"  {entry['prob']:6.1%}  {entry['class']}")
    if any("error" in row for row in rows):
        raise SystemExit(2)


def _names(labels_file: Path | None, meta: dict[str, object], num_classes: int) -> list[str]:
    from vmae.core.errors import InputError

    if labels_file is None:
        found = meta.get("labels")
        return [str(n) for n in found] if isinstance(found, list) else [str(c) for c in range(num_classes)]
    try:
        names = [line.strip() for line in labels_file.read_text().splitlines() if line.strip()]
    except OSError as e:
        raise InputError(f"--labels: expected a readable file, got {labels_file} ({e.strerror})") from e
    if len(names) != num_classes:
        raise InputError(
            f"--labels: expected {num_classes} names (the model's classes), got {len(names)} in {labels_file}"
        )
    return names
