"""The videos that a folder or a list of any kind names, and what their files of features are called."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vmae.core.errors import InputError
from vmae.core.video.annotations import AnnotationFormat, read_annotations
from vmae.core.video.samples import VIDEO_SUFFIXES, read_lines


def list_videos(
    listed: str | Path, data_root: str | Path | None = None, format: AnnotationFormat = "auto"
) -> list[str]:
    """The videos of a folder (all below it, sorted), or of a list.

    Raises InputError where there is none.
    """
    path = Path(listed)
    if path.is_dir():
        found = sorted(str(p) for p in path.rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES)
    else:
        listed_paths = (
            [s.path for s in read_annotations(path, data_root, format=format)] if read_lines(path) else []
        )
        found = list(dict.fromkeys(listed_paths))
    if not found:
        raise InputError(f"{listed}: expected at least one video, got none")
    return found


def video_ids(paths: Sequence[str], prefix: str = "") -> dict[str, str]:
    """Name of the feature file (without suffix) -> path: the video's stem, beginning with `prefix`.

    Raises InputError where two videos would share a file.
    """
    ids: dict[str, str] = {}
    for path in paths:
        stem = Path(path).stem if Path(path).suffix.lower() in VIDEO_SUFFIXES else Path(path).name
        name = stem if stem.startswith(prefix) else prefix + stem
        if name in ids:
            raise InputError(f"expected every video's name once, got {ids[name]} and {path}")
        ids[name] = path
    return ids
