"""`vmae bench report`: tables and pictures from checked-in GPU results."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.option("--results", type=click.Path(path_type=Path, exists=True, file_okay=False),
              help="Folder with gpu_*.json.  [default: the checked-in ones]")  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path, file_okay=False),
              help="Write report.md and the pictures here; default: print the tables.")  # fmt: skip
def report(results: Path | None, out: Path | None) -> None:
    """Make tables (ops, whole step, profile) and pictures (roofline, ratios) from GPU suite results."""
    from vmae.experiments.bench.report import RESULTS, draw_ratios, draw_roofline, load_results, markdown

    found = load_results(results or RESULTS)
    if not found:
        click.echo(
            "no GPU result here: figures are pending until `python -m vmae.experiments.bench.gpu_suite "
            "--out DIR` has run on an NVIDIA GPU; `vmae bench kernels --aot` shows what the compiler reports"
        )
        return
    text = "\n".join(markdown(r) for r in found)
    if out is None:
        click.echo(text)
        return
    out.mkdir(parents=True, exist_ok=True)
    for result in found:
        name = Path(result["file"]).stem
        draw_roofline(result, out / f"{name}_roofline.png")
        draw_ratios(result, out / f"{name}_ratios.png")
        text += f"\n![roofline]({name}_roofline.png)\n\n![ratios]({name}_ratios.png)\n"
    (out / "report.md").write_text(text)
    click.echo(f"wrote {out / 'report.md'} and {2 * len(found)} pictures")
