"""`vmae reconstruct`: original, masked clip and reconstruction side by side, as a file."""

from __future__ import annotations

from pathlib import Path

import click

from vmae.cli.options import runs_dir_option

KINDS = (".mp4", ".gif", ".png")


@click.command()
@click.argument("video")
@click.option(
    "--checkpoint",
    required=True,
    help="Pre-trained model: a run's name, a path, a name of `vmae zoo list`, or hf://org/name.",
)
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="File to write: .mp4, .gif or .png.",
)
@click.option("--ratio", type=float, help="Share of masked tokens.  [default: as trained, else 0.9]")
@click.option("--mask", "mask_type", default="tube", show_default=True, help="Kind of mask.")
@click.option("--seed", default=0, show_default=True, type=int, help="Of the mask.")
@click.option(
    "--start", type=click.IntRange(0), help="First frame of the clip.  [default: so that it is central]"
)
@click.option(
    "--sampling-rate",
    type=click.IntRange(1),
    help="Stride between frames.  [default: the checkpoint's, or 4]",
)
@click.option(
    "--form",
    type=click.Choice(["both", "model_only", "as_trained"]),
    default="both",
    show_default=True,
    help="model_only uses nothing of the hidden pixels; as_trained borrows their mean and variance.",
)
@click.option(
    "--pca",
    is_flag=True,
    help="Add what the encoder makes of the whole clip: the first three principal components of its tokens "
    "as red, green and blue.",
)
@click.option("--fps", default=8.0, show_default=True, type=float, help="Frames a second of the film.")
@runs_dir_option
def reconstruct(
    video: str,
    checkpoint: str,
    output: Path,
    ratio: float | None,
    mask_type: str,
    seed: int,
    start: int | None,
    sampling_rate: int | None,
    form: str,
    pca: bool,
    fps: float,
    runs_dir: Path | None,
) -> None:
    """Hide most of VIDEO and let the model fill it in: original, what it sees, reconstruction, error.

    Every picture says what it uses: the usual reconstruction takes each hidden patch's mean and variance from
    the original, so it looks better than the model is; "model only" does not.
    """
    from vmae.core.errors import InputError
    from vmae.core.measure.films import PCA_LABEL, form_label
    from vmae.core.measure.reconstruct import FORMS, reconstruction_metrics
    from vmae.experiments import api

    if output.suffix.lower() not in KINDS:
        raise InputError(f"--output: expected a name ending in {', '.join(KINDS)}; got '{output}'")
    if not output.parent.is_dir():
        raise InputError(f"--output: expected an existing folder, got '{output.parent}'")
    if not 0 < fps <= 120:
        raise InputError(f"--fps: expected more than 0 and at most 120, got {fps:g}")
    model = api.load(checkpoint, runs_dir=runs_dir)
    for note in model.notes:
        click.echo(f"note: {note}", err=True)
    made = model.reconstruct(
        video, ratio=ratio, mask=mask_type, seed=seed, start=start, sampling_rate=sampling_rate
    )
    forms = list(FORMS) if form == "both" else [form]
    if made.target == "raw":
        forms = ["as_trained"]
    more = []
    if pca:
        more = [(PCA_LABEL, model.token_colours(video, start=start, sampling_rate=sampling_rate))]
    api.save_film(made, output, forms=forms, fps=fps, more=more)
    for f in forms:
        numbers = reconstruction_metrics(made, f).means()
        text = "  ".join(f"{k} {v:.4g}" for k, v in numbers.items())
        click.echo(f"{form_label(made.target, f)}: {text} (masked pixels)")
    click.echo(f"wrote {output}")
