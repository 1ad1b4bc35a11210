"""Checking a list: every kind of fault is found and named; what it finds is used for reading."""

from __future__ import annotations

import csv
import dataclasses
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vmae.core.video.check import NOTES, check_file, check_samples, write_report
from vmae.core.video.clips import ClipDataset
from vmae.core.video.config import DataConfig
from vmae.core.video.isolate import Outcome
from vmae.core.video.probe import probe_video
from vmae.core.video.probe_store import Probes, probes_path, save_probes
from vmae.core.video.samples import Sample


def test_good_files_of_all_kinds(any_kind: Path) -> None:
    report = check_file(Sample(path=str(any_kind), label=0))
    assert (report.status, report.reason) == ("ok", "")
    assert "inexact_seek" not in report.notes
    assert report.info is not None
    assert ("variable_frame_rate" in report.notes) == any_kind.stem.startswith("h264_vfr")
    assert ("rotated" in report.notes) == ("rotated" in any_kind.stem)
    assert ("odd_size" in report.notes) == ("odd" in any_kind.stem)
    assert ("sequential" in report.notes) == (report.info.backend == "sequential")
    assert set(report.notes) <= set(NOTES)


def test_damage_in_the_middle_needs_the_whole_decode(
    video_kind: Callable[[str], Path], tmp_path: Path
) -> None:
    source = video_kind("h264_mkv")
    data = bytearray(source.read_bytes())
    data[len(data) * 3 // 10 : len(data) * 3 // 10 + 64] = bytes(64)
    path = tmp_path / "a.mkv"
    path.write_bytes(data)
    report = check_file(Sample(path=str(path), label=0))
    assert (report.status, report.reason) == ("bad", "corrupt")


def test_a_list(video_kind: Callable[[str], Path], tmp_path: Path) -> None:
    good = str(video_kind("h264_bframes"))
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_bytes(b"no video" * 50)
    (tmp_path / "cut.mp4").write_bytes(video_kind("h264_faststart").read_bytes()[:9000])
    samples = [
        Sample(path=good, label=0),
        Sample(path=str(tmp_path / "empty.mp4"), label=0),
        Sample(path=str(tmp_path / "text.mp4"), label=1),
        Sample(path=str(tmp_path / "cut.mp4"), label=1),
        Sample(path=str(tmp_path / "absent.mp4"), label=1),
        Sample(path=good, label=1),
        Sample(path=good, label=0, start=50, num_frames=20),
    ]
    seen: list[tuple[int, int]] = []
    result = check_samples(samples, workers=2, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(i, 5) for i in range(1, 6)]  # a file is decoded once, however many lines name it
    assert [r.reason for r in result.reports] == [
        "",
        "empty",
        "unreadable",
        "truncated",
        "missing",
        "",
        "truncated",
    ]
    assert [r.path for r in result.bad] == [samples[i].path for i in (1, 2, 3, 4, 6)]
    assert "conflicting_label" in result.reports[0].notes
    assert "duplicate" in result.reports[5].notes
    assert "duplicate" not in result.reports[6].notes
    assert "7 lines, 5 files: 2 ok, 5 bad (71.43%)" in result.summary()
    write_report(result, tmp_path / "report.csv")
    with open(tmp_path / "report.csv", newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    assert [r["status"] for r in rows] == ["ok", "bad", "bad", "bad", "bad", "ok", "bad"]
    assert (rows[0]["frames"], rows[0]["backend"], rows[0]["width"]) == ("60", "seek", "128")


def test_training_fails_for_the_same_reasons(tmp_path: Path, video_kind: Callable[[str], Path]) -> None:
    (tmp_path / "text.mp4").write_bytes(b"no video" * 50)
    (tmp_path / "cut.mp4").write_bytes(video_kind("h264_faststart").read_bytes()[:9000])
    samples = [Sample(path=str(tmp_path / n), label=0) for n in ("text.mp4", "cut.mp4", "absent.mp4")]
    batch = ClipDataset(samples, DataConfig(size=(32, 32))).load_batch([(0, 0), (0, 1), (0, 2)])
    assert [f["reason"] for f in batch["failed"]] == [check_file(s).reason for s in samples]


def test_probes_are_remembered_and_used(video_kind: Callable[[str], Path], tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(video_kind("h264_vfr").read_bytes())
    info = probe_video(path)
    csv_path = tmp_path / "train.csv"
    csv_path.write_text(f"{path} 0\n")
    save_probes(probes_path(csv_path), [info])
    again = Probes(probes_path(csv_path)).get(str(path))
    assert again == info
    assert again is not None
    for name in ("pts", "key_pts", "key_dts"):
        assert np.array_equal(getattr(again, name), getattr(info, name))
    assert Probes(probes_path(csv_path)).get("other.mp4") is None
    # Remembered as sequential, it is read so.
    empty = np.empty(0, np.int64)
    slow = dataclasses.replace(info, backend="sequential", pts=empty, key_pts=empty, key_dts=empty)
    save_probes(probes_path(csv_path), [slow])
    dataset = ClipDataset([Sample(path=str(path), label=0)], DataConfig(train_csv=str(csv_path)))
    assert dataset._info(str(path)).backend == "sequential"
    # A changed file is probed anew.
    path.write_bytes(video_kind("h264_bframes").read_bytes())
    assert dataset._info(str(path)).backend == "seek"
    assert Probes(tmp_path / "absent").get(str(path)) is None


def test_decord_is_tried_on_request_and_the_answer_is_remembered(
    video_kind: Callable[[str], Path], tmp_path: Path
) -> None:
    pytest.importorskip("decord")
    kinds = {"h264_bframes": True, "mpeg4_avi_bframes": False, "h264_edit_list": False, "h264_mpegts": False}
    reports = [check_file(Sample(path=str(video_kind(k)), label=0), try_decord=True) for k in kinds]
    assert ["not_for_decord" not in r.notes for r in reports] == list(kinds.values())
    save_probes(tmp_path / "a.probes", [r.info for r in reports if r.info is not None])
    probes = Probes(tmp_path / "a.probes")
    found = [probes.get(str(video_kind(k))) for k in kinds]
    assert [info.decord_ok for info in found if info is not None] == list(kinds.values())


def test_a_killed_check_is_gone_on_with(video_kind: Callable[[str], Path], tmp_path: Path) -> None:
    names = ["one.mp4", "two.mp4", "text.mp4", "three.mp4"]
    for name in names:
        shutil.copyfile(video_kind("h264_bframes"), tmp_path / name)
    (tmp_path / "text.mp4").write_bytes(b"no video" * 50)
    samples = [Sample(path=str(tmp_path / name), label=0) for name in names]
    journal = tmp_path / "journal"
    read: list[str] = []

    def runner(last: int) -> Any:
        def here(function: Any, items: Any, **_: object) -> Iterator[Outcome]:
            for index, item in enumerate(items):
                read.append(Path(item.path).name)
                yield Outcome(index=index, value=function(item))
                if index == last:
                    raise KeyboardInterrupt

        return here

    with pytest.raises(KeyboardInterrupt):
        check_samples(samples, runner=runner(2), journal=journal)
    assert read == names[:3]
    with open(journal, "a") as f:
        f.write('{"settings": {"fu')  # killed while writing
    (tmp_path / "two.mp4").touch()  # changed since
    read.clear()
    seen: list[tuple[int, int]] = []
    result = check_samples(
        samples, runner=runner(9), journal=journal, progress=lambda done, total: seen.append((done, total))
    )
    # What was bad is tried again: a disk that was away comes back.
    assert read == ["two.mp4", "text.mp4", "three.mp4"]
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [r.status for r in result.reports] == ["ok", "ok", "bad", "ok"]
    assert not journal.exists()
    fresh = check_samples(samples, runner=runner(9))
    for kept, new in zip(result.reports, fresh.reports, strict=True):
        assert dataclasses.replace(kept, seconds=0) == dataclasses.replace(new, seconds=0)
    assert kept.info is not None and (result.reports[0].info.pts == fresh.reports[0].info.pts).all()
