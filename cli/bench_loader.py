"""`vmae bench loader`: our loader against the usual way and other readers, in one run."""

from __future__ import annotations

from pathlib import Path

import click

from vmae.cli.options import require_writable

KINDS = [(256, 340, 12), (256, 340, 250), (720, 1280, 12), (720, 1280, 250)]


@click.command("loader")
@click.option(
    "--clips", "folder", type=click.Path(path_type=Path), default=None, help="Also these video files."
)
@click.option("--count", type=int, default=10, show_default=True, help="Clips per file and way.")
@click.option("--opens", type=int, default=2000, show_default=True, help="Opens in the memory test; 0: none.")
@click.option("--frames", type=int, default=300, show_default=True, help="Length of the generated videos.")
@click.option("--work", type=click.Path(path_type=Path), default=None, help="Keep the generated videos here.")
@click.option("--out", type=click.Path(path_type=Path), default=None, help="Also write the tables here.")
def loader(
    folder: Path | None, count: int, opens: int, frames: int, work: Path | None, out: Path | None
) -> None:
    """Clips per second of the loader, the usual way (decord, PIL, float) and other readers.

    16 frames at stride 4 to a 224 x 224 training crop, one thread, on generated 340x256 and 1280x720 H.264
    (key frame every 12 and 250 frames) and on the videos in --clips. Rates are per second of processor time,
    wall time in brackets.
    """
    import tempfile

    from vmae.core.errors import InputError, VideoError
    from vmae.core.progress import progress
    from vmae.core.video.optimize import OptimizeConfig, optimize_file
    from vmae.core.video.probe import probe_video
    from vmae.core.video.samples import VIDEO_SUFFIXES
    from vmae.experiments.bench import loader as bench

    if count < 1 or frames < 2:
        raise InputError(f"expected at least 1 clip and 2 frames, got --count {count} --frames {frames}")
    given: list[Path] = []
    lines: list[str] = []
    if out is not None:
        require_writable(out)

    def say(text: str = "") -> None:
        lines.append(text)
        click.echo(text)

    if folder is not None:
        if not folder.is_dir():
            raise InputError(f"--clips: expected a folder of videos, got {folder}")
        for path in sorted(p for p in folder.iterdir() if p.suffix.lower() in VIDEO_SUFFIXES):
            try:
                probe_video(path)
                given.append(path)
            except VideoError as e:
                say(f"left out: {e}")

    def cell(r: bench.Rate | None) -> str:
        if r is None or not r.clips_per_cpu_s:
            return (r.note if r is not None else "") or "-"
        return f"{r.clips_per_cpu_s:.1f} ({r.clips_per_wall_s:.1f})" + (
            " WRONG FRAMES" if r.exact is False else ""
        )

    with tempfile.TemporaryDirectory() as temporary:
        folder_of_work = work or Path(temporary)
        folder_of_work.mkdir(parents=True, exist_ok=True)
        with progress("bench loader", total=2 * (len(KINDS) + len(given)) + len(KINDS), unit="step") as bar:
            generated = []
            for height, width, keyint in KINDS:
                path = folder_of_work / f"{width}x{height}_keyint{keyint}_{frames}.mp4"
                generated.append(
                    path
                    if path.is_file()
                    else bench.make_bench_video(
                        path, height=height, width=width, keyint=keyint, frames=frames
                    )
                )
                bar.update(1)
            files = [*generated, *given]
            loaders, readers = {}, {}
            for path in files:
                loaders[path.name] = {r.way: r for r in bench.bench_loader(path, clips=count)}
                bar.update(1)
                readers[path.name] = {r.way: r for r in bench.bench_readers(path, clips=count)}
                bar.update(1)
        say("| file | usual way | ours | ours, repeats 4 | ours / usual | repeats 4 / usual |")
        say("|---|---|---|---|---|---|")
        for name, ways in loaders.items():
            base = ways["usual"].clips_per_cpu_s
            ratio = [f"{ways[w].clips_per_cpu_s / base:.1f}x" if base else "-" for w in ("ours", "ours x4")]
            say(
                f"| {name} | "
                + " | ".join([*(cell(ways[w]) for w in ("usual", "ours", "ours x4")), *ratio])
                + " |"
            )
        say()
        say("| file | " + " | ".join(bench.READERS) + " | ours / fastest exact other |")
        say("|---|" + "---|" * (len(bench.READERS) + 1))
        for name, ways in readers.items():
            others = [r.clips_per_cpu_s for w, r in ways.items() if w != "ours" and r.exact]
            ratio_text = f"{ways['ours'].clips_per_cpu_s / max(others):.2f}x" if others else "-"
            say(f"| {name} | " + " | ".join(cell(ways.get(w)) for w in bench.READERS) + f" | {ratio_text} |")
        say()
        target = Path(temporary) / "optimized.mp4"
        source = generated[-1]
        optimize_file((str(source), str(target)), config=OptimizeConfig())
        before, after = bench.bench_optimized(source, target, clips=count)
        sizes = [p.stat().st_size / 2**20 for p in (source, target)]
        say(
            f"{source.name} before `vmae data optimize` {cell(before)}, after {cell(after)}: "
            f"{after.clips_per_cpu_s / before.clips_per_cpu_s:.1f}x; "
            f"size {sizes[0]:.2f} MiB before, {sizes[1]:.2f} MiB after"
        )
        if opens:
            start, peak = bench.memory_over_opens(generated[0], opens)
            say(
                f"resident memory over {opens} opens: {start:.1f} MiB in the first tenth, "
                f"at most {peak:.1f} MiB after it ({100 * (peak / start - 1):+.1f}%)"
            )
    if out is not None:
        out.write_text("\n".join(lines) + "\n", encoding="utf-8")
