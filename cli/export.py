"""`vmae export`: a model as a graph for other runtimes, or as a Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from vmae.cli.options import hf_layout_option, runs_dir_option

if TYPE_CHECKING:
    from torch import Tensor

    from vmae.core.video.config import DataConfig


@click.command()
@click.argument("model", metavar="MODEL")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--to", required=True, type=click.Choice(["onnx", "torch-export", "hf"]), help="What OUT is.")
@click.option(
    "--check",
    "videos",
    multiple=True,
    type=click.Path(exists=True),
    help="Compare on the central clip of this video (repeatable).  [default: random clips]",
)
@hf_layout_option
@click.option("--force", is_flag=True, help="Replace OUT.")
@runs_dir_option
def export(
    model: str,
    out: Path,
    to: str,
    videos: tuple[str, ...],
    hf_layout: str,
    force: bool,
    runs_dir: Path | None,
) -> None:
    """Write MODEL (a run's name, a path, a name of `vmae zoo list`, or hf://org/name) for other programs.

    onnx, torch-export: one graph from uint8 clips [B, T, H, W, C] to the output, for any B; normalisation is
    inside, how a video becomes a clip is in the file's metadata. hf: a folder with the processor's
    configuration. What was written is run (by onnxruntime, torch.export, the installed transformers) and
    compared with the model: more than 1e-4 apart is an error, and OUT is removed.
    """
    from vmae.core.errors import InputError
    from vmae.core.model.classifier import VideoClassifier
    from vmae.core.model.detector import Detector
    from vmae.core.weights import export as graphs
    from vmae.core.weights.convert import write_model
    from vmae.experiments import evaluation
    from vmae.experiments.tracking import store_at
    from vmae.experiments.weights import load_model_at

    if out.exists() and not force:
        raise InputError(f"{out} exists; expected a new path (or --force)")
    if to == "onnx":
        graphs.require_onnx("onnx", "onnxscript", "onnxruntime")  # before anything is written
    store = store_at(runs_dir)
    net, meta, notes = load_model_at(store, model)
    net.eval()
    data = evaluation.evaluation_config(store, model).data
    if to == "hf" and isinstance(net, Detector):
        raise InputError("expected a pre-trained model or a classifier for --to hf, got a detector")
    inputs = graphs.example_inputs(net, len(videos) or 2) | _clips(videos, data)
    out.parent.mkdir(parents=True, exist_ok=True)
    if to == "hf":
        notes += write_model(out, net, "hf", meta, hf_layout=hf_layout, overwrite=force)
    else:
        labels = meta.get("labels") if isinstance(net, VideoClassifier | Detector) else None
        sampling: dict[str, object] = {"sampling": data.sampling, "sampling_rate": data.sampling_rate}
        if data.fps:
            sampling = {"sampling": data.sampling, "fps": data.fps}
        graphs.export_graph(out, net, to, graphs.describe_graph(net, sampling, labels))
    for note in notes:
        click.echo(f"note: {note}", err=True)
    runner, apart = graphs.compare(out, to, net, inputs)
    if apart is None:
        click.echo(f"{out}: not compared: {runner} is not installed")
        return
    what = f"{len(inputs['video'])} clips of {len(videos)} videos" if videos else "2 random clips"
    click.echo(f"{out} ({to}): at most {apart:.1e} from the model in {runner}, on {what}")


def _clips(videos: tuple[str, ...], data: DataConfig) -> dict[str, Tensor]:
    """The central clip of each video as `{"video": uint8 [B, T, H, W, C]}`; nothing where there is none.

    Raises InputError for a video that cannot be read.
    """
    if not videos:
        return {}
    from dataclasses import replace

    from vmae.core.errors import InputError
    from vmae.core.video.clips import ClipDataset
    from vmae.core.video.samples import Sample

    config = replace(data, workers=0, cache=False, val_csv="")
    dataset = ClipDataset([Sample(path=v, label=0) for v in videos], config, "val")
    batch = dataset.load_batch([(0, k) for k in range(len(videos))])
    if batch["failed"]:
        bad = batch["failed"][0]
        got = f"{bad['path']}: {bad['reason']}: {bad['detail']}"
        raise InputError(f"--check: expected videos that can be read, got {got}")
    return {"video": batch["clip"]}
