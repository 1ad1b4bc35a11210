"""`vmae plan`: what a run will cost, before it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vmae.cli.options import format_option

if TYPE_CHECKING:
    from vmae.core.plan import Plan
    from vmae.experiments.config import ExperimentConfig
    from vmae.experiments.cost import RunCost


@click.command()
@click.argument("size", metavar="[SIZE]", required=False)
@click.option("--recipe", help="Plan this recipe's run (`vmae recipes`) instead of a SIZE.")
@click.option("--data", "train_csv", type=click.Path(path_type=Path), help="List whose videos are counted.")
@format_option
@click.option("--frames", type=int, help="Frames of a clip.  [default: the size's]")
@click.option("--resolution", metavar="PX|HxW", help="Pixels.  [default: the size's]")
@click.option("--patch-size", type=int, help="Pixels.  [default: the size's]")
@click.option("--tubelet-size", type=int, help="Frames.  [default: 2]")
@click.option("--decoder-depth", type=int, help="Decoder blocks.  [default: the size's]")
@click.option("--mask-type", help="Encoder mask.  [default: tube]")
@click.option("--mask-ratio", type=float, help="Share of masked tokens.  [default: 0.9]")
@click.option("--decoder-mask-ratio", type=float, default=0.0, show_default=True,
              help="Running-cell decoder mask (VideoMAE V2); 0 for none.")  # fmt: skip
@click.option("--batch", type=int, help="Clips per GPU.  [default: 32, or the recipe's]")
@click.option(
    "--gpu", help="v100, a100, h100, h200, b200, 4090; cpu: this machine's, timed.  [default: h200]"
)
@click.option("--gpus", type=int, default=1, show_default=True, help="How many.")
@click.option("--videos", type=int, help="Clips in an epoch.  [default: 240,000, or those of --data]")
@click.option("--epochs", type=int, help="Epochs.  [default: 800, or the recipe's]")
@click.option("--utilisation", type=float, default=0.4, show_default=True,
              help="Share of the GPU's dense bf16 peak that is reached.")  # fmt: skip
@click.option("--checkpoint-activations", is_flag=True, help="Recompute activations.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def plan(
    size: str | None,
    recipe: str | None,
    train_csv: Path | None,
    annotation_format: str,
    as_json: bool,
    **given: Any,
) -> None:
    """Parameters, FLOPs, memory and time of pre-training SIZE (tiny, small, base, large, huge, giant), or of
    a recipe's run: on GPUs by their peak, on this CPU by a few timed steps.
    """
    import json

    from vmae.core.errors import InputError

    if (size is None) == (recipe is None):
        raise InputError(f"expected a SIZE or --recipe, got {'neither' if size is None else 'both'}")
    samples = None
    videos = given["videos"] or 240_000
    if train_csv is not None:
        from vmae.core.video.annotations import read_annotations

        if given["videos"] is not None:
            raise InputError("expected --videos or --data, got both")
        samples = read_annotations(train_csv, format=annotation_format)  # type: ignore[arg-type]
        videos = len(samples)
    on_cpu = given["gpu"] == "cpu"
    if on_cpu or recipe is not None:
        from vmae.experiments.cost import run_cost

        cost = run_cost(
            _config(size, recipe, given),
            videos=videos,
            samples=samples,
            gpu=None if on_cpu else given["gpu"] or "h200",
            gpus=given["gpus"],
            utilisation=given["utilisation"],
        )
        click.echo(json.dumps(cost.to_json(), indent=2) if as_json else _run_text(cost))
        return
    from vmae.core.plan import make_plan

    config = _config(size, None, given)
    p = make_plan(
        config.model,
        config.mask,
        batch=given["batch"] or 32,
        gpu=given["gpu"] or "h200",
        gpus=given["gpus"],
        videos=videos,
        epochs=config.train.epochs,
        utilisation=given["utilisation"],
    )
    if as_json:
        click.echo(json.dumps(_json(p, given["utilisation"]), indent=2))
        return
    _show(p, f"{size}", given | {"videos": videos, "epochs": config.train.epochs})


def _config(size: str | None, recipe: str | None, given: dict[str, Any]) -> ExperimentConfig:
    """The run that is planned: the recipe's, or pre-training a SIZE; with the options given."""
    from dataclasses import replace

    from vmae.cli.convert import parse_resolution
    from vmae.core.model.masking import MaskConfig
    from vmae.core.model.videomae import VideoMAEConfig
    from vmae.experiments import recipes
    from vmae.experiments.config import ExperimentConfig

    height, width = parse_resolution(given["resolution"])
    names = ("frames", "patch_size", "tubelet_size", "decoder_depth", "checkpoint_activations")
    shape = {n: given[n] for n in names if given[n]} | {
        n: v for n, v in (("height", height), ("width", width)) if v is not None
    }
    base = recipes.get(recipe) if recipe is not None else ExperimentConfig()
    model = (
        replace(base.model, **shape) if recipe is not None else VideoMAEConfig.from_size(str(size), **shape)
    )
    mask = base.mask if recipe is not None else MaskConfig(type="tube", ratio=0.9)
    asked = {"type": given["mask_type"], "ratio": given["mask_ratio"]}
    if given["decoder_mask_ratio"]:
        asked |= {"decoder_type": "running_cell", "decoder_ratio": given["decoder_mask_ratio"]}
    mask = replace(mask, **{k: v for k, v in asked.items() if v is not None})
    epochs = given["epochs"] or (base.train.epochs if recipe is not None else 800)
    batch = given["batch"] * given["gpus"] if given["batch"] else base.train.batch_size
    if recipe is None and not given["batch"]:
        batch = 32 * given["gpus"]
    return replace(
        base,
        model=model,
        mask=mask,
        data=replace(base.data, frames=model.frames, size=(model.height, model.width)),
        train=replace(base.train, epochs=epochs, batch_size=batch),
    )


def _run_text(cost: RunCost) -> str:
    from vmae.cli.tables import format_table
    from vmae.core.plan import GIB
    from vmae.core.progress import format_duration

    rows = [
        ["clip", cost.clip],
        ["FLOPs of a clip, forward and backward", f"{cost.training_flops / 1e9:,.3g} G"],
        ["memory, weights to activations", f"{cost.memory / GIB:.2f} GiB"],
        ["throughput", f"{cost.clips_per_s:,.{0 if cost.clips_per_s >= 10 else 2}f} clips/s"],
        ["steps", f"{cost.steps:,} ({cost.epochs} epochs of {cost.videos:,} videos)"],
        ["time", format_duration(cost.seconds)],
    ]
    return f"{format_table([cost.name, ''], rows)}\n\n{cost.assumed}"


def _json(p: Plan, utilisation: float) -> dict[str, Any]:
    from vmae.core.plan import GIB

    return {
        "parameters": p.parameters,
        "visible": p.num_visible,
        "decoded": p.num_decoded,
        "forward_gflop": p.forward_flops / 1e9,
        "training_gflop": p.training_flops / 1e9,
        "encoder_forward_gflop": p.encoder.forward_flops / 1e9,
        "decoder_forward_gflop": p.decoder.forward_flops / 1e9,
        "activation_gib": p.activation_bytes / GIB,
        "state_gib": p.state_bytes / GIB,
        "steps": p.steps,
        "clips_per_s": p.clips_per_s,
        "hours": p.hours,
        "gpu_hours": p.gpu_hours,
        "utilisation": utilisation,
    }


def _show(p: Plan, size: str, given: dict[str, Any]) -> None:
    from vmae.cli.tables import format_table
    from vmae.core.plan import GIB, GPUS
    from vmae.core.progress import format_duration

    config, mask, grid = p.config, p.mask, p.config.grid
    gpu, gpus, batch = given["gpu"] or "h200", given["gpus"], p.batch_per_gpu
    peak, memory = GPUS[gpu], p.state_bytes + p.activation_bytes
    click.echo(
        f"{size}: {config.frames}x{config.height}x{config.width}, {grid.describe()}; {mask.type} mask"
        f" {mask.ratio:g}: {p.num_visible} visible, {p.num_decoded} decoded of {grid.num_tokens}\n"
    )
    rows = [
        [
            name,
            f"{s.tokens}",
            f"{s.parameters / 1e6:.1f}",
            f"{s.forward_flops / 1e9:.1f}",
            f"{s.training_flops / 1e9:.1f}",
        ]
        for name, s in (("encoder", p.encoder), ("decoder", p.decoder))
    ]
    total = [p.parameters / 1e6, p.forward_flops / 1e9, p.training_flops / 1e9]
    rows.append(["both", "", *(f"{v:.1f}" for v in total)])
    click.echo(
        format_table(["per clip", "tokens", "parameters M", "forward GFLOP", "forward+backward GFLOP"], rows)
    )
    click.echo()
    time = f"{p.hours:,.1f} h ({p.gpu_hours:,.0f} GPU hours)"
    if p.hours < 1:
        time = format_duration(p.hours * 3600)
    rows = [
        ["weights, gradients, AdamW (fp32)", f"{p.state_bytes / GIB:.2f} GiB"],
        [f"activations, {batch} clips", f"{p.activation_bytes / GIB:.2f} GiB"],
        ["together, per GPU", f"{memory / GIB:.2f} of {peak.memory_gib:g} GiB"],
        ["throughput", f"{p.clips_per_s:,.0f} clips/s"],
        ["steps", f"{p.steps:,}"],
        ["time", time],
    ]
    click.echo(format_table([f"{gpus} x {gpu}", ""], rows))
    click.echo(
        f"\nAssumed: {given['utilisation']:.0%} of {peak.tflops:g} TFLOP/s dense bf16 ({gpu}), matrix"
        " products only, a multiply-add counted as 2, backward twice the forward; loading, communication and"
        f" evaluation hidden; batch {batch * gpus} in all, {given['videos']:,} clips an epoch,"
        f" {given['epochs']} epochs. Memory without the allocator's slack and temporary buffers."
    )
    if memory > peak.memory_gib * GIB:
        click.echo("It does not fit: lower --batch or pass --checkpoint-activations.", err=True)
