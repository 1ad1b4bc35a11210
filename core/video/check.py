"""Decode every file of a list before training does: what is bad, what is unusual, and how each must be read.

Each file is read in a process that can be killed. The classes of faults are those of `reader.probe_video`,
with which training also decides; `full` adds what only a whole decode can tell.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import dataclasses
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from vmae.core.errors import VideoError
from vmae.core.video.container import DEFAULT_TIMEOUT_S, Deadline, open_container, video_stream
from vmae.core.video.isolate import Runner, run_isolated
from vmae.core.video.probe import VideoInfo, probe_video
from vmae.core.video.probe_store import pack, unpack
from vmae.core.video.reader import decord_agrees, open_video
from vmae.core.video.samples import Sample
from vmae.core.video.stills import first_frame, refuse_pipes

NOTES = {
    "variable_frame_rate": "time between frames varies: a fixed stride in frames is no fixed stride in time",
    "odd_size": "odd width or height",
    "frame_count": "the header promises another number of frames than a decode shows",
    "rotated": "stored rotated; frames are turned on reading",
    "mirrored": "stored mirrored; frames are mirrored back on reading",
    "pixels_not_square": "pixels are wider or narrower than high; frames are resized to the displayed aspect",
    "sequential": "no reliable seeking: every read decodes from the start (see `vmae data optimize`)",
    "inexact_seek": "seeking shows other frames than a whole decode: read sequentially from now on",
    "not_for_decord": "decord shows other frames or none: read with PyAV whatever data.reader says",
    "duplicate": "listed more than once",
    "conflicting_label": "listed with different labels",
}


@dataclass(frozen=True, kw_only=True)
class FileReport:
    """One file: `status` is `ok` or `bad` (with `reason` and `detail` of the VideoError); `notes` are keys of
    `NOTES`; `info` is the probe, where there is one; `seconds` the time the check took."""

    path: str
    label: int
    status: str
    reason: str = ""
    detail: str = ""
    notes: tuple[str, ...] = ()
    header_frames: int = 0
    seconds: float = 0.0
    info: VideoInfo | None = None


def check_file(
    sample: Sample,
    *,
    full: bool = True,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    try_decord: bool = False,
) -> FileReport:
    """Decode a file: the first, the last and some frames in between by random access, and with `full` every
    frame in order, against which the others are compared. Never raises for a bad file.

    `timeout_s` limits every read, and in the decode of the whole file (films may be long) every frame.
    `try_decord`: find out whether decord shows the same frames (kept in the report's `info`).
    """
    start = time.perf_counter()
    notes: list[str] = []
    info: VideoInfo | None = None
    header_frames = 0
    try:
        refuse_pipes(sample.path)
        info = probe_video(sample.path, timeout_s=timeout_s)
        n = info.num_frames
        rng = np.random.default_rng(0)
        wanted = sorted({0, n - 1, n // 2, *(int(i) for i in rng.integers(0, n, 3))})
        with open_video(sample.path, info=info, timeout_s=timeout_s) as video:
            # Backwards and one by one: every read is a seek of its own.
            seen = {i: video.read([i], channels=None)[0] for i in reversed(wanted)}
        if info.backend in ("seek", "sequential"):
            header_frames = _header_frames(sample.path, timeout_s)
            if full:
                count, same = _decode_whole(info, seen, timeout_s)
                if not same:
                    notes.append("inexact_seek")
                    info = dataclasses.replace(
                        info, backend="sequential", num_frames=count, pts=_NONE, key_pts=_NONE, key_dts=_NONE
                    )
            if header_frames and header_frames != info.num_frames:
                notes.append("frame_count")
            if try_decord:
                info = dataclasses.replace(info, decord_ok=decord_agrees(info, timeout_s=timeout_s))
                if not info.decord_ok:
                    notes.append("not_for_decord")
        elif full:
            with open_video(sample.path, info=info, timeout_s=timeout_s) as video:
                for i in range(0, n, 64):
                    video.restart_clock()
                    video.read(range(i, min(i + 64, n)), min(16, info.height, info.width), None)
        if info.variable_rate:
            notes.append("variable_frame_rate")
        if info.width % 2 or info.height % 2:
            notes.append("odd_size")
        if info.rotation:
            notes.append("rotated")
        if info.mirrored:
            notes.append("mirrored")
        if info.pixel_aspect != 1:
            notes.append("pixels_not_square")
        if info.backend == "sequential" and "inexact_seek" not in notes:
            notes.append("sequential")
        require_stretch(sample, info)
    except VideoError as e:
        return FileReport(
            path=sample.path,
            label=sample.label,
            status="bad",
            reason=e.reason,
            detail=e.detail,
            notes=tuple(notes),
            header_frames=header_frames,
            seconds=time.perf_counter() - start,
            info=info,
        )
    return FileReport(
        path=sample.path,
        label=sample.label,
        status="ok",
        notes=tuple(notes),
        header_frames=header_frames,
        seconds=time.perf_counter() - start,
        info=info,
    )


_NONE = np.empty(0, np.int64)


def require_stretch(sample: Sample, info: VideoInfo, time_origin_s: float = 0.0) -> None:
    """Raise VideoError (`truncated`) where a line of the list asks for frames that the file does not have."""
    if sample.time_s is not None:
        info.frame_at(sample.time_s - time_origin_s)
        return
    last = first_frame(sample.path, sample.start) + (sample.num_frames or 1) - 1
    if info.num_frames <= last:
        raise VideoError(
            sample.path, "truncated", f"the list asks for frame {last}, the file has {info.num_frames}"
        )


def _header_frames(path: str, timeout_s: float) -> int:
    with open_container(path, Deadline(path, timeout_s)) as container:
        return int(video_stream(path, container).frames or 0)


def _decode_whole(info: VideoInfo, seen: dict[int, np.ndarray], timeout_s: float) -> tuple[int, bool]:
    """`(number of frames, whether random access showed the same)` of a decode from start to end."""
    same, count = True, 0
    with open_video(info.path, info=info, timeout_s=timeout_s) as video:
        for count, frame in enumerate(video.decode(), start=1):
            video.restart_clock()
            index = count - 1
            if index in seen:
                same = same and np.array_equal(video.to_array(frame), seen[index])
    return count, same and count == info.num_frames


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """Reports in the order of the list, one per line of it."""

    reports: list[FileReport]

    @property
    def bad(self) -> list[FileReport]:
        """The files that training would skip."""
        return [r for r in self.reports if r.status == "bad"]

    def summary(self) -> str:
        """A few lines: counts of files, faults and notes."""
        n, bad = len(self.reports), self.bad
        files = len({r.path for r in self.reports})
        what = f"{n} files" if files == n else f"{n} lines, {files} files"
        lines = [f"{what}: {n - len(bad)} ok, {len(bad)} bad ({100 * len(bad) / n:.2f}%)"]
        lines += [f"  bad  {k}: {v}" for k, v in Counter(r.reason for r in bad).most_common()]
        notes = Counter(note for r in self.reports for note in r.notes)
        lines += [f"  note {k}: {v} ({NOTES[k]})" for k, v in notes.most_common()]
        frames = [r.info.num_frames for r in self.reports if r.info is not None and r.status == "ok"]
        if frames:
            lines.append(f"  frames: {min(frames)} to {max(frames)}, median {int(np.median(frames))}")
        return "\n".join(lines)


def check_samples(
    samples: Sequence[Sample],
    *,
    workers: int = 1,
    full: bool = True,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    try_decord: bool = False,
    time_origin_s: float = 0.0,
    progress: Callable[[int, int], None] | None = None,
    runner: Runner = run_isolated,
    journal: Path | None = None,
) -> CheckResult:
    """Check every file of a list in parallel; a file that hangs or crashes its process is bad, no more.

    `runner` is where: processes of this machine, or another function of the same form (a cluster's).
    `progress(done, total)` counts files. The rest as in `check_file`; `time_origin_s` as in `DataConfig`.
    With a `journal` (a file that is there until the whole list is checked) a call that was killed is gone on
    with: files that it had found good with the same settings, and that are unchanged, are not read again.
    """
    # A file is decoded once however many lines name it (a film of AVA has hundreds of key frames).
    files = [Sample(path=path, label=-1) for path in dict.fromkeys(s.path for s in samples)]
    found: dict[str, FileReport] = {}
    check = partial(check_file, full=full, timeout_s=timeout_s, try_decord=try_decord)
    # The reads inside are limited one by one; together they get a multiple before the process is killed, and
    # the longest file the time to be decoded at 1 MiB a second.
    limit_s = 4 * timeout_s + max((_size(f.path) for f in files), default=0) / 2**20
    settings = {"full": full, "timeout_s": timeout_s, "try_decord": try_decord}
    if journal is not None:
        known = _read_journal(journal, settings)
        found = {f.path: known[f.path] for f in files if f.path in known}
        if found and progress is not None:
            progress(len(found), len(files))
    waiting = [f for f in files if f.path not in found]
    with open(journal, "a", encoding="utf-8") if journal is not None else contextlib.nullcontext() as log:
        for outcome in runner(check, waiting, workers=workers, limit_s=limit_s):
            path = waiting[outcome.index].path
            report = outcome.value
            if outcome.failure:
                reason = "unreadable" if outcome.failure == "error" else outcome.failure
                report = FileReport(path=path, label=-1, status="bad", reason=reason, detail=outcome.detail)
            elif log is not None and report.status == "ok":
                _note(log, report, settings)
            found[path] = report
            if progress is not None:
                progress(len(found), len(files))
    if journal is not None:
        journal.unlink()
    whole = [_of_line(s, found[s.path], time_origin_s) for s in samples]
    labels: dict[str, set[int]] = {}
    for r in whole:
        labels.setdefault(r.path, set()).add(r.label)
    times = Counter((s.path, s.start, s.num_frames, s.time_s) for s in samples)
    for k, (r, s) in enumerate(zip(whole, samples, strict=True)):
        extra = []
        if times[s.path, s.start, s.num_frames, s.time_s] > 1:
            extra.append("duplicate")
        if len(labels[r.path]) > 1:
            extra.append("conflicting_label")
        if extra:
            whole[k] = dataclasses.replace(r, notes=(*r.notes, *extra))
    return CheckResult(reports=whole)


def _note(journal: TextIO, report: FileReport, settings: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # a cluster may see what this machine does not
        stat = os.stat(report.path)
        plain = {k: v for k, v in vars(report).items() if k != "info"}
        info = None if report.info is None else base64.b64encode(pack(report.info)).decode()
        entry = {
            "settings": settings,
            "file": [stat.st_size, stat.st_mtime_ns],
            "report": plain,
            "info": info,
        }
        journal.write(json.dumps(entry) + "\n")
        journal.flush()


def _read_journal(journal: Path, settings: dict[str, Any]) -> dict[str, FileReport]:
    found = {}
    for line in journal.read_text(encoding="utf-8").splitlines() if journal.is_file() else ():
        try:
            entry = json.loads(line)
            plain = entry["report"]
            stat = os.stat(plain["path"])
            if entry["settings"] == settings and entry["file"] == [stat.st_size, stat.st_mtime_ns]:
                info = unpack(base64.b64decode(entry["info"])) if entry["info"] else None
                report = FileReport(**{**plain, "notes": tuple(plain["notes"]), "info": info})
                found[report.path] = report
        except (ValueError, KeyError, TypeError, OSError):
            continue  # the last line of a killed run, or a file that is gone
    return found


def _of_line(sample: Sample, file: FileReport, time_origin_s: float) -> FileReport:
    """What a file's report says of one line of the list."""
    report = dataclasses.replace(file, label=sample.label)
    if report.status == "ok" and report.info is not None:
        try:
            require_stretch(sample, report.info, time_origin_s)
        except VideoError as e:
            return dataclasses.replace(report, status="bad", reason=e.reason, detail=e.detail)
    return report


def _size(path: str) -> int:
    try:
        return os.path.getsize(path)
    except (OSError, ValueError):
        return 0


def write_report(result: CheckResult, path: str | Path) -> None:
    """A csv with a header, one row per file."""
    columns = [
        "path", "label", "status", "reason", "detail", "notes", "frames", "header_frames", "fps", "width",
        "height", "codec", "container", "backend", "seconds",
    ]  # fmt: skip
    with open(path, "w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f)
        writer.writerow(columns)
        for r in result.reports:
            found: list[Any] = [""] * 7
            if r.info is not None:
                i = r.info
                found = [f"{i.fps:.3f}", i.width, i.height, i.codec, i.container, i.backend]
            frames = r.info.num_frames if r.info is not None else ""
            row = [r.path, r.label, r.status, r.reason, r.detail, " ".join(r.notes), frames, r.header_frames]
            writer.writerow([*row, *found[:6], f"{r.seconds:.3f}"])
