"""The `vmae` command: verbs are loaded only when they are called, so that help stays fast.

Every verb lives in a file of its own under `vmae.cli` and is listed in `VERBS` with its one-line help;
the file is imported when the verb runs or its own `--help` is asked for. No verb's module imports torch,
Ray, MLflow or Streamlit at module level.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import gc
import os
import re
import sys

import click

from vmae import __version__
from vmae.cli.lazy import LazyGroup, Verbs
from vmae.cli.streams import lost_output, make_safe

# verb -> (module, attribute, help line). The order here is the order in `vmae --help`.
VERBS: Verbs = {
    "sweep": ("vmae.cli.sweep", "sweep", "Run many trials that differ in one thing, and rank them."),
    "pretrain": ("vmae.cli.pretrain", "pretrain", "Pre-train a masked autoencoder."),
    "finetune": ("vmae.cli.finetune", "finetune", "Train a classifier or another head end to end."),
    "distill": ("vmae.cli.distill", "distill", "Train a small classifier on a larger one's answers."),
    "evaluate": ("vmae.cli.evaluate", "evaluate", "Measure a fine-tuned model on held-out videos."),
    "probe": ("vmae.cli.probe", "probe", "Measure a model's frozen features."),
    "features": ("vmae.cli.features", "features", "Write a model's features of each video of a list."),
    "localise": ("vmae.cli.localise", "localise", "Find when actions happen, from windowed features."),
    "export": ("vmae.cli.export", "export", "Write a model for onnxruntime, torch.export or transformers."),
    "serve": ("vmae.cli.serve", "serve", "Print the command that answers requests with a model."),
    "retrieve": ("vmae.cli.retrieve", "retrieve", "Find the videos of an index that look like one."),
    "predict": ("vmae.cli.predict", "predict", "Say what is in videos."),
    "reconstruct": ("vmae.cli.reconstruct", "reconstruct", "Original, masked and reconstruction as a film."),
    "recipes": (
        "vmae.cli.recipes",
        "recipes",
        "The named configurations: the papers', the demo's, small data's.",
    ),
    "runs": ("vmae.cli.runs", "runs", "List, compare, export and delete runs."),
    "sweeps": ("vmae.cli.sweeps", "sweeps", "List sweeps; see where one is while it runs."),
    "results": ("vmae.cli.results", "results", "The evidence of docs/results: questions, tables, pages."),
    "dashboard": (
        "vmae.cli.dashboard",
        "dashboard",
        "Look at reconstructions, sweeps and runs in a browser.",
    ),
    "ui": ("vmae.cli.ui", "ui", "Open MLflow's own web UI on the runs."),
    "cache": ("vmae.cli.cache", "cache", "List and trim decoded clips and other things made again."),
    "cluster": ("vmae.cli.cluster", "cluster", "Check that a Ray cluster is fit for the work."),
    "doctor": ("vmae.cli.doctor", "doctor", "Say what is installed, which kernels are active and why."),
    "data": ("vmae.cli.data", "data", "Make, list, check and re-encode sets of videos."),
    "bench": ("vmae.cli.bench", "bench", "Measure kernels and the loader, side by side."),
    "convert": ("vmae.cli.convert", "convert", "Checkpoints between official, Hugging Face and our format."),
    "zoo": ("vmae.cli.zoo", "zoo", "The published checkpoints: names, recipes, results."),
    "recommend": ("vmae.cli.recommend", "recommend", "Choose how to train on a list, with reasons."),
    "plan": ("vmae.cli.plan", "plan", "What a pre-training run will cost: FLOPs, memory, hours."),
}


_PLACES = (
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOSPC, errno.EDQUOT),
    *(errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
)
"""What is wrong with a place and not with this program."""
_ASSIGNMENT = re.compile(r"[a-z_]\w*(\.\w+)*=")


@click.group(cls=LazyGroup, verbs=VERBS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="vmae")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Pre-train, fine-tune, compare and look at video masked autoencoders."""


def spread_set(argv: list[str]) -> list[str]:
    """`--set a=1 b=2` as the parser reads it: `--set a=1 --set b=2`."""
    spread: list[str] = []
    taking = False
    for word in argv:
        if taking and _ASSIGNMENT.match(word) and spread[-1] != "--set":
            spread.append("--set")
        taking = word == "--set" or (taking and _ASSIGNMENT.match(word) is not None)
        spread.append(word)
    return spread


def run(argv: list[str] | None = None) -> None:
    """Entry point: errors a user can cause become one line and exit code 2 (130 for Ctrl-C).

    Without `argv` it is the command of its own process; verbs see that in the context's `obj`.
    """
    try:
        _run(argv)
    except SystemExit as e:
        if argv is None:
            _end_at_once(e.code)
        raise


def _end_at_once(code: object) -> None:
    """End the process here where a thread is at work in native code, such as a Ray that is still starting.

    An interpreter that ends in good order pulls that code away under the thread, and now and then aborts.
    """
    background = sys.modules.get("vmae.experiments.background")
    if background is not None and background.unfinished():
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def _run(argv: list[str] | None) -> None:
    own_process = argv is None
    if own_process:
        make_safe()
        # Else the interpreter's end looks through a million objects for garbage: a second of a processor.
        atexit.register(gc.freeze)
    argv = sys.argv[1:] if argv is None else argv
    os.environ["VMAE_COMMAND"] = " ".join(["vmae", *argv])  # runs record it, in Ray's workers too
    # --debug works wherever it stands on the line.
    debug = "--debug" in argv or os.environ.get("VMAE_DEBUG") == "1"
    argv = [a for a in argv if a != "--debug"]
    try:
        code = main.main(args=spread_set(argv), prog_name="vmae", standalone_mode=False, obj=own_process)
    except click.exceptions.Exit as e:
        sys.exit(e.exit_code)
    except click.exceptions.Abort:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except click.ClickException as e:
        if debug:
            raise
        click.echo(f"vmae: error: {e.format_message()}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except Exception as e:
        from vmae.core.errors import VmaeError

        lost = None if debug else lost_output(e)
        if lost is not None:
            if lost:
                click.echo(f"vmae: error: the output could not be written: {lost}", err=True)
            sys.exit(1)
        if debug or not isinstance(e, VmaeError | OSError):
            raise
        if isinstance(e, OSError):
            if e.errno not in _PLACES or not e.filename:
                raise
            click.echo(f"vmae: error: {e.filename}: {e.strerror} (--debug shows where)", err=True)
            sys.exit(2)
        click.echo(f"vmae: error: {e}", err=True)
        sys.exit(2)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    run()
