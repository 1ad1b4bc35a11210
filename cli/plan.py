"""`vmae plan`: what a pre-training run will cost, before it runs."""

from __future__ import annotations

import click


@click.command()
@click.argument("size", metavar="SIZE")
@click.option("--frames", type=int, help="Frames of a clip.  [default: the size's]")
@click.option("--resolution", metavar="PX|HxW", help="Pixels.  [default: the size's]")
@click.option("--patch-size", type=int, help="Pixels.  [default: the size's]")
@click.option("--tubelet-size", type=int, help="Frames.  [default: 2]")
@click.option("--decoder-depth", type=int, help="Decoder blocks.  [default: the size's]")
@click.option("--mask-type", default="tube", show_default=True, help="Encoder mask.")
@click.option("--mask-ratio", type=float, default=0.9, show_default=True, help="Share of masked tokens.")
@click.option("--decoder-mask-ratio", type=float, default=0.0, show_default=True,
              help="Running-cell decoder mask (VideoMAE V2); 0 for none.")  # fmt: skip
@click.option("--batch", type=int, default=32, show_default=True, help="Clips per GPU.")
@click.option("--gpu", default="h200", show_default=True, help="v100, a100, h100, h200, b200 or 4090.")
@click.option("--gpus", type=int, default=1, show_default=True, help="How many.")
@click.option("--videos", type=int, default=240_000, show_default=True, help="Clips in an epoch.")
@click.option("--epochs", type=int, default=800, show_default=True, help="Epochs.")
@click.option("--utilisation", type=float, default=0.4, show_default=True,
              help="Share of the GPU's dense bf16 peak that is reached.")  # fmt: skip
@click.option("--checkpoint-activations", is_flag=True, help="Recompute activations.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def plan(
    size: str,
    *,
    frames: int | None,
    resolution: str | None,
    patch_size: int | None,
    tubelet_size: int | None,
    decoder_depth: int | None,
    mask_type: str,
    mask_ratio: float,
    decoder_mask_ratio: float,
    batch: int,
    gpu: str,
    gpus: int,
    videos: int,
    epochs: int,
    utilisation: float,
    checkpoint_activations: bool,
    as_json: bool,
) -> None:
    """Parameters, FLOPs, memory and hours of pre-training SIZE (tiny, small, base, large, huge, giant)."""
    import json

    from vmae.cli.convert import parse_resolution
    from vmae.cli.tables import format_table
    from vmae.core.model.masking import MaskConfig
    from vmae.core.model.videomae import VideoMAEConfig
    from vmae.core.plan import GIB, GPUS, make_plan

    height, width = parse_resolution(resolution)
    asked = {
        "frames": frames,
        "height": height,
        "width": width,
        "patch_size": patch_size,
        "tubelet_size": tubelet_size,
        "decoder_depth": decoder_depth,
        "checkpoint_activations": checkpoint_activations or None,
    }
    config = VideoMAEConfig.from_size(size, **{k: v for k, v in asked.items() if v is not None})
    mask = MaskConfig(
        type=mask_type,
        ratio=mask_ratio,
        decoder_type="running_cell" if decoder_mask_ratio else None,
        decoder_ratio=decoder_mask_ratio,
    )
    p = make_plan(
        config, mask, batch=batch, gpu=gpu, gpus=gpus, videos=videos, epochs=epochs, utilisation=utilisation
    )
    peak = GPUS[gpu]
    memory = p.state_bytes + p.activation_bytes
    if as_json:
        click.echo(
            json.dumps(
                {
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
                },
                indent=2,
            )
        )
        return
    grid = config.grid
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
    rows.append(
        [
            "both",
            "",
            f"{p.parameters / 1e6:.1f}",
            f"{p.forward_flops / 1e9:.1f}",
            f"{p.training_flops / 1e9:.1f}",
        ]
    )
    click.echo(
        format_table(["per clip", "tokens", "parameters M", "forward GFLOP", "forward+backward GFLOP"], rows)
    )
    click.echo()
    rows = [
        ["weights, gradients, AdamW (fp32)", f"{p.state_bytes / GIB:.2f} GiB"],
        [f"activations, {batch} clips", f"{p.activation_bytes / GIB:.2f} GiB"],
        ["together, per GPU", f"{memory / GIB:.2f} of {peak.memory_gib:g} GiB"],
        ["throughput", f"{p.clips_per_s:,.0f} clips/s"],
        ["steps", f"{p.steps:,}"],
        ["time", f"{p.hours:,.1f} h ({p.gpu_hours:,.0f} GPU hours)"],
    ]
    click.echo(format_table([f"{gpus} x {gpu}", ""], rows))
    click.echo(
        f"\nAssumed: {utilisation:.0%} of {peak.tflops:g} TFLOP/s dense bf16 ({gpu}), matrix products only,"
        " a multiply-add counted as 2, backward twice the forward; loading, communication and evaluation"
        " hidden;"
        f" batch {batch * gpus} in all, {videos:,} clips an epoch, {epochs} epochs."
        " Memory without the allocator's slack and temporary buffers."
    )
    if memory > peak.memory_gib * GIB:
        click.echo("It does not fit: lower --batch or pass --checkpoint-activations.", err=True)
