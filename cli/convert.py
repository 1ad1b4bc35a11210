"""`vmae convert`: between official, Hugging Face and our checkpoints."""

from __future__ import annotations

from pathlib import Path

import click

from vmae.cli.options import hf_layout_option, runs_dir_option


@click.command()
@click.argument("source", metavar="IN")
@click.argument("target", metavar="OUT", type=click.Path())
@click.option("--to", required=True, type=click.Choice(["official", "hf", "vmae"]), help="Format of OUT.")
@hf_layout_option
@click.option("--num-heads", type=int, help="Attention heads, where IN does not say or says it wrongly.")
@click.option("--decoder-num-heads", type=int, help="Decoder heads, where an official IN has no known width.")
@click.option("--frames", type=int, help="Frames an official IN was trained with (default: its args, or 16).")
@click.option("--resolution", metavar="PX|HxW", help="Its pixels (default: its args, or 224).")
@click.option("--force", is_flag=True, help="Replace OUT.")
@runs_dir_option
def convert(
    source: str,
    target: str,
    *,
    to: str,
    hf_layout: str,
    num_heads: int | None,
    decoder_num_heads: int | None,
    frames: int | None,
    resolution: str | None,
    force: bool,
    runs_dir: Path | None,
) -> None:
    """Read the checkpoint IN, whatever its format, and write OUT.

    IN: a run's name, an official VideoMAE (V1, V2) .pth file, a Hugging Face directory, or one of ours. OUT:
    a .pth file (--to official), a directory (--to hf), a directory or a .safetensors file (--to vmae). Needs
    no network. Every key must match, or the error lists what is left over on both sides.
    """
    from vmae.core.errors import InputError, nearest
    from vmae.core.weights.convert import read_model, write_model
    from vmae.experiments.tracking import store_at
    from vmae.experiments.weights import model_source

    height, width = parse_resolution(resolution)
    store = store_at(runs_dir)
    place = source if Path(source).exists() else model_source(store, source)
    if not Path(place).exists():
        raise InputError(
            f"IN: expected a run's name or a checkpoint's path, got '{source}'"
            f"{nearest(source, store.layout.runs())}"
        )
    loaded = read_model(
        place,
        frames=frames,
        height=height,
        width=width,
        num_heads=num_heads,
        decoder_num_heads=decoder_num_heads,
    )
    notes = write_model(target, loaded.model, to, loaded.meta, hf_layout=hf_layout, overwrite=force)
    for note in (*loaded.notes, *notes):
        click.echo(f"note: {note}", err=True)
    c = loaded.model.config
    parameters = sum(p.numel() for p in loaded.model.parameters())
    click.echo(
        f"{source} ({loaded.format}) -> {target} ({to}): {type(loaded.model).__name__}, width {c.embed_dim},"
        f" depth {c.depth}, {c.num_heads} heads, {c.frames}x{c.height}x{c.width}, {parameters:,} parameters"
    )


def parse_resolution(text: str | None) -> tuple[int | None, int | None]:
    """`"224"` or `"224x320"` (height x width) as (height, width); None as (None, None)."""
    from vmae.core.errors import InputError

    if text is None:
        return None, None
    parts = text.lower().split("x")
    if not all(p.isdigit() for p in parts) or len(parts) not in (1, 2):
        raise InputError(f"expected a resolution like 224 or 224x320 (height x width), got {text!r}")
    return int(parts[0]), int(parts[-1])
