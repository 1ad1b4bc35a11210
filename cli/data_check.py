"""`vmae data check`: decode every file of a list, report what is bad, write a cleaned list."""

from __future__ import annotations

from pathlib import Path

import click

from vmae.cli.data_leaks import beside, find_and_show
from vmae.cli.options import counted, format_option, require_writable, where_to_run


@click.command("check")
@click.argument("csv", type=click.Path(path_type=Path))
@click.option(
    "--data-root", type=click.Path(path_type=Path), default=None, help="Where relative paths start."
)
@format_option
@click.option("--workers", type=click.IntRange(1), default=None, help="Processes.  [default: all cores]")
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=30.0,
    show_default=True,
    help="Seconds for one read.",
)
@click.option("--quick", is_flag=True, help="First, last and a few frames of each file instead of all.")
@click.option(
    "--decord",
    "try_decord",
    is_flag=True,
    help="Also remember which files decord reads rightly (data.reader).",
)
@click.option(
    "--time-origin", type=float, default=0.0, show_default=True, help="AVA: second at which the files begin."
)
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Other lists that should share nothing with CSV.  [default: train.csv, val.csv, test.csv beside it]",
)
@click.option("--no-leaks", is_flag=True, help="Do not compare with other lists.")
@click.option(
    "--groups", metavar="REGEX|FILE", help="Also name the groups two lists share (as in data index)."
)
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    default=None,
    help="[default: train.report.csv beside train.csv]",
)
@click.option(
    "--clean",
    type=click.Path(path_type=Path),
    default=None,
    help="[default: train.clean.csv beside train.csv]",
)
@click.option(
    "--address",
    help="Ray cluster whose nodes do the work: auto, HOST:PORT or ray://HOST:PORT.  [default: this machine]",
)
def check(
    csv: Path,
    data_root: Path | None,
    annotation_format: str,
    workers: int | None,
    timeout: float,
    quick: bool,
    try_decord: bool,
    time_origin: float,
    against: tuple[Path, ...],
    no_leaks: bool,
    groups: str | None,
    report: Path | None,
    clean: Path | None,
    address: str | None,
) -> None:
    """Decode every file of CSV: unreadable, cut, empty, without video, of variable rate or odd size, wrong
    frame counts, seeking that shows wrong frames. Run again to go on with a check that was killed.

    Writes a report (csv, and its summary as text), a list of the good files, and what reading must know about
    each file (CSV.probes, used by training). Ends with code 1 when a file is bad.

    Videos that look nearly like one of the other lists' are named (perceptual hashes of five frames of each),
    and all of them written to CSV.leaks.csv.
    """
    from vmae.core.files import write_text
    from vmae.core.progress import progress
    from vmae.core.video.annotations import read_annotations, write_annotations
    from vmae.core.video.check import check_samples, write_report
    from vmae.core.video.probe_store import probes_path, save_probes

    root = data_root if data_root is not None else csv.parent
    samples = read_annotations(csv, root.absolute(), format=annotation_format)  # type: ignore[arg-type]
    stem = str(csv.with_suffix("")) if csv.suffix == ".csv" else str(csv)
    report, clean = report or Path(f"{stem}.report.csv"), clean or Path(f"{stem}.clean.csv")
    require_writable(report, clean, probes_path(csv))
    bad = 0
    with (
        where_to_run(address, (s.path for s in samples)) as (runner, default_workers),
        progress("check", total=len({s.path for s in samples}), unit="file") as bar,
    ):
        result = check_samples(
            samples,
            workers=workers or default_workers,
            full=not quick,
            timeout_s=timeout,
            try_decord=try_decord,
            time_origin_s=time_origin,
            progress=counted(bar),
            runner=runner,
            journal=report.with_name(f"{report.name}.journal"),
        )
        bad = len(result.bad)
    write_report(result, report)
    write_text(report.with_suffix(".txt"), f"{csv}\n{result.summary()}\n")
    # Paths as the list has them, so that it can be moved with its videos, unless it is written elsewhere.
    as_listed = samples
    if data_root is not None or clean.absolute().parent == csv.absolute().parent:
        as_listed = read_annotations(csv, data_root, format=annotation_format, rooted=False)  # type: ignore[arg-type]
    good = [s for s, r in zip(as_listed, result.reports, strict=True) if r.status == "ok"]
    if good:
        write_annotations(clean, good)
    probes = [r.info for r in result.reports if r.status == "ok" and r.info is not None]
    for listed in (csv, clean):  # training may be given either
        save_probes(probes_path(listed), probes)
    click.echo(result.summary())
    # A file once, however many lines name it.
    named = list(
        dict.fromkeys(f"bad: {r.path}: {r.reason}" + f": {r.detail}" * bool(r.detail) for r in result.bad)
    )
    for line in named[:20]:
        click.echo(line)
    if len(named) > 20:
        click.echo(f"... and {len(named) - 20} more in the report")
    if any(r.reason == "missing" for r in result.bad):
        click.echo(
            f"paths that are not absolute start at {root.absolute()}; --data-root names another folder"
        )
    click.echo(f"report: {report} (summary: {report.with_suffix('.txt')})")
    click.echo(f"clean list: {clean} ({len(good)} lines)" if good else "no clean list: every file is bad")
    others = {}
    if not no_leaks:
        others = {p: read_annotations(p, data_root, format=annotation_format) for p in against or beside(csv)}  # type: ignore[arg-type]
    if others and good:
        with where_to_run(address, (s.path for s in samples)) as (runner, default_workers):
            find_and_show(
                csv, samples, others, groups=groups, workers=workers or default_workers or 1, runner=runner
            )
    if bad:
        raise click.exceptions.Exit(1)
