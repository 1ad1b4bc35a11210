"""What a classifier said of each video of a list, as an evaluated run keeps it."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vmae.experiments.runs import Run, artifact_folder


@dataclass(frozen=True, kw_only=True)
class Said:
    """A line of predictions.csv: the classes by name, `share` the probability of the predicted one."""

    path: str
    label: str
    predicted: str
    """Empty for a video that could not be read, which counts as wrong."""
    share: float
    error: str = ""

    @property
    def right(self) -> bool:
        return self.label == self.predicted


def predictions_file(run: Run) -> Path | None:
    """Where the run's predictions are on this machine; None for one that was not evaluated, or elsewhere."""
    folder = artifact_folder(run)
    file = None if folder is None else folder / "evaluation" / "predictions.csv"
    return file if file is not None and file.is_file() else None


def read_predictions(file: Path) -> list[Said]:
    """The lines of predictions.csv."""
    with open(file, newline="", encoding="utf-8") as opened:
        return [
            Said(
                path=row["path"],
                label=row["label"],
                predicted=row["predicted"],
                share=float(row.get("prob1") or 0.0),
                error=row["error"] or "",
            )
            for row in csv.DictReader(opened)
        ]


def classes_of(said: Sequence[Said]) -> list[str]:
    """The classes that occur, numbers in their order, else by name."""
    names = {s.label for s in said} | {s.predicted for s in said if s.predicted}
    return sorted(names, key=lambda n: (not n.isdigit(), int(n) if n.isdigit() else 0, n))


def confusions(said: Sequence[Said]) -> Counter[tuple[str, str]]:
    """How many videos each (label, predicted) has; those that could not be read have an empty prediction."""
    return Counter((s.label, s.predicted) for s in said)


def chosen(said: Sequence[Said], label: str | None, predicted: str | None) -> list[Said]:
    """The videos of a cell, the surest first. None: any label; any other class than the label."""
    found = [
        s
        for s in said
        if (label is None or s.label == label)
        and (s.predicted == predicted if predicted is not None else not s.right)
    ]
    return sorted(found, key=lambda s: -s.share)


def as_csv(said: Sequence[Said]) -> str:
    """A csv with a header: path, label, predicted, share, error."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["path", "label", "predicted", "share", "error"])
    writer.writerows([s.path, s.label, s.predicted, f"{s.share:.6f}", s.error] for s in said)
    return out.getvalue()
