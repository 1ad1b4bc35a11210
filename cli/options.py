"""Options that several verbs share."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import click

if TYPE_CHECKING:
    from vmae.core.progress import Progress
    from vmae.core.video.isolate import Runner
    from vmae.experiments.tracking import Store

Command = Callable[..., Any]


class _RunsDir(click.Path):
    """A folder as a Path; a URI stays the text it is (a Path would make `s3:/bucket` of it)."""

    def convert(self, value: Any, param: click.Parameter | None, context: click.Context | None) -> Any:
        if "://" in str(value):
            return str(value)
        return super().convert(value, param, context)


def with_options(command: Command, *options: Callable[[Command], Command]) -> Command:
    """The command with these options, in this order."""
    for option in reversed(options):
        command = option(command)
    return command


def runs_dir_option(command: Command) -> Command:
    """`--runs-dir`: the project's run directory."""
    return click.option(
        "--runs-dir",
        type=_RunsDir(file_okay=False, path_type=Path),
        envvar="VMAE_RUNS",
        metavar="DIRECTORY",
        help="Run directory: MLflow store, checkpoints, sweeps.  [default: ./runs]",
    )(command)


def hf_layout_option(command: Command) -> Command:
    """`--hf-layout`: which names of the keys a Hugging Face folder has."""
    return click.option(
        "--hf-layout",
        default="v4",
        type=click.Choice(["v4", "v5"]),
        show_default=True,
        help="Key names for --to hf: v4, the Hub's (exact in transformers 5.0 and from 5.18 on; 5.12 to 5.15 "
        "load them wrongly, without a word), or v5, transformers 5's (exact from 5.12 on, wrong or NaN in "
        "5.0); docs/huggingface.md.",
    )(command)


def format_option(command: Command) -> Command:
    """`--format`: of a list's lines, as `annotation_format`."""
    return click.option(
        "--format",
        "annotation_format",
        default="auto",
        show_default=True,
        help="Of the list's lines: auto, label, start_total, total_label, numbers, labels, ava, coco "
        "(docs/data.md).",
    )(command)


def set_option(command: Command) -> Command:
    """`--set KEY=VALUE`: override any field of the configuration."""
    return click.option(
        "--set",
        "assignments",
        multiple=True,
        metavar="KEY=VALUE...",
        help="Override fields, for example --set optim.base_lr=3e-4 mask.ratio=0.75 (repeatable).",
    )(command)


@dataclass(frozen=True, kw_only=True)
class ConfigOptions:
    """What `config_options`, `set_option` and `runs_dir_option` took from the command line."""

    recipe: str | None
    config_file: Path | None
    train_csv: Path | None
    lists: dict[str, Any]
    """What more --data means (`weighted_lists`)."""
    val_csv: Path | None
    data_root: Path | None
    size: str | None
    epochs: int | None
    assignments: tuple[str, ...]
    runs_dir: Path | None

    @classmethod
    def taken(cls, given: dict[str, Any]) -> Self:
        """From what click made of the command line."""
        from vmae.experiments.request import weighted_lists

        first, lists = weighted_lists(given["train_csv"])
        return cls(**{**given, "train_csv": first, "lists": lists})


def config_options(command: Command) -> Command:
    """`--recipe`, `--config`, `--data`, `--val`, `--data-root`, `--size`, `--epochs`."""
    return with_options(
        command,
        click.option(
            "--recipe",
            help="Named recipe to start from (`vmae recipes`).  [default: what `vmae recommend` says of "
            "--data; without --data the built-in data's]",
        ),
        click.option(
            "--config", "config_file", type=click.Path(path_type=Path), help="YAML of an earlier run."
        ),
        click.option(
            "--data",
            "train_csv",
            multiple=True,
            metavar="FILE[:WEIGHT]",
            help="Training list, `path label`. Several make one pre-training, each weighing as it says.",
        ),
        click.option(
            "--val",
            "val_csv",
            type=click.Path(path_type=Path),
            help="Held-out list.  [default: val.csv beside --data; pretrain can do without]",
        ),
        click.option(
            "--data-root", type=click.Path(path_type=Path), help="Folder that the lists' paths start from."
        ),
        click.option("--size", help="Model size: tiny, small, base, large, huge, giant."),
        click.option("--epochs", type=int, help="Training epochs."),
    )


def init_options(command: Command) -> Command:
    """`--init`, `--resize-patch-embed`."""
    return with_options(
        command,
        click.option(
            "--init",
            help="Weights to start from: a run's name, a path, a name of `vmae zoo list`, or hf://org/name.  "
            "[default: the recipe's, else fresh weights]",
        ),
        click.option(
            "--resize-patch-embed",
            is_flag=True,
            help="Resample the patch weights of --init where the model has another patch or tubelet size.",
        ),
    )


def in_runs_dir(store: Store) -> str:
    """` --runs-dir PLACE`, for a command to be typed, where the store is not where it would be looked for."""
    import os
    import shlex

    from vmae.experiments.tracking import default_runs_dir

    if store.remote:
        usual = store.remote == os.environ.get("VMAE_RUNS", "").rstrip("/")
    else:
        usual = store.runs_dir == default_runs_dir()
    return "" if usual else f" --runs-dir {shlex.quote(store.remote or str(store.runs_dir))}"


def address_options(command: Command) -> Command:
    """`--address` and `--gpus` of verbs whose videos a cluster's nodes can share."""
    command = click.option(
        "--gpus", type=float, default=0.0, show_default=True, help="With --address: GPUs of each task."
    )(command)
    return click.option(
        "--address",
        help="Ray cluster whose nodes do the work: auto, HOST:PORT or ray://HOST:PORT.  "
        "[default: this machine]",
    )(command)


def require_writable(*files: Path) -> None:
    """Make the folders of files that a command will write; InputError at once rather than after the work."""
    import os

    from vmae.core.errors import InputError

    for file in files:
        try:
            file.absolute().parent.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise InputError(f"{file}: expected a place that can be written, got {e.strerror}") from None
        if file.is_dir() or not os.access(file.absolute().parent, os.W_OK):
            what = "a folder of that name" if file.is_dir() else "a folder that may not be written"
            raise InputError(f"{file}: expected a place that can be written, got {what}")


def confirm(question: str, yes: bool) -> None:
    """Ask before something goes, unless `yes`; InputError where there is no terminal to ask on."""
    import sys

    from vmae.core.errors import InputError

    if yes:
        return
    if not sys.stdin.isatty():
        raise InputError("expected --yes where there is no terminal to ask on; nothing was removed")
    click.confirm(question, abort=True)


@contextmanager
def fitness_shown() -> Iterator[None]:
    """Inside, an unfit cluster is shown as a table, one row a node, before the error's line."""
    from vmae.experiments.cluster import ClusterUnfit

    try:
        yield
    except ClusterUnfit as e:
        from vmae.cli.cluster import nodes_table

        click.echo(nodes_table(e.reports), err=True)
        raise


def counted(bar: Progress) -> Callable[[int, int], None]:
    """Shows (done, total) on a bar."""
    seen = 0

    def count(done: int, total: int) -> None:
        nonlocal seen
        bar.update(done - seen)
        seen = done

    return count


@contextmanager
def where_to_run(
    address: str | None, paths: Iterable[str] = (), out: Path | None = None
) -> Iterator[tuple[Runner, int]]:
    """The runner of `--address` and how many items it should have under way (0: as the cluster has cores).

    A cluster is asked first: each node must read the first of `paths` that is readable here, and write `out`.
    """
    import os

    if address is None:
        from vmae.core.video.isolate import run_isolated

        yield run_isolated, os.cpu_count() or 1
        return
    from vmae.experiments.cluster import connected, require_fit
    from vmae.experiments.cluster.ray_map import ray_map

    # A file that is missing everywhere is one of those to be reported.
    seen = [os.path.abspath(p) for p in itertools.islice((p for p in paths if os.access(p, os.R_OK)), 1)]
    with connected(address), fitness_shown():
        require_fit(paths=seen, storage="" if out is None else str(out.absolute()))
        yield ray_map, 0
