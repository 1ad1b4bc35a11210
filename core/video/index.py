"""Official data set layouts to `train.csv`, `val.csv`, `test.csv` and `classes.txt`.

| layout | expected in the folder |
|---|---|
| `folders` | `train/CLASS/...`, `val/CLASS/...` (`test/...`), or `CLASS/...` alone (see `folders`); a flat folder gives lists without labels |
| `kinetics` | `train.csv`, `val.csv` or `validate.csv`, `test.csv` (`label,youtube_id,time_start,time_end`), also in `annotations/`; videos anywhere below, `ID_000010_000020.mp4` or `ID.mp4` |
| `ucf101` | `ucfTrainTestlist/{classInd,trainlist0N,testlist0N}.txt`; videos `CLASS/v_*.avi` anywhere below |
| `hmdb51` | `testTrainMulti_7030_splits/CLASS_test_splitN.txt`; videos `CLASS/*.avi` anywhere below |
| `ssv2` | `labels.json`, `train.json`, `validation.json`, `test.json` (also with the prefix `something-something-v2-`, also in `labels/`); videos `ID.webm` anywhere below |
| `rawframes` | as `folders`, with a folder of images for each video; written as `frame_dir total label` |
| `ava` | `ava_train_v2.N.csv`, `ava_val_v2.N.csv`, their `..._excluded_timestamps_v2.N.csv` and `ava_action_list_v2.N.pbtxt` (also in `annotations/`); films `ID.mp4` (`.mkv`, ...) anywhere below; written in AVA's own rows, without excluded key frames and absent films. Line N of `classes.txt` is action N (they count from 1) |
"""  # noqa: E501

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from vmae.core.errors import InputError, nearest
from vmae.core.files import write_text
from vmae.core.video.annotations import write_annotations
from vmae.core.video.ava import read_ava, read_excluded, read_label_map
from vmae.core.video.folders import SPELLINGS, SPLITS, LeftOut, read_class_folders, videos_below
from vmae.core.video.samples import Sample

Layout = Literal["folders", "kinetics", "ucf101", "hmdb51", "ssv2", "rawframes", "ava"]
LAYOUTS: tuple[str, ...] = get_args(Layout)


@dataclass(frozen=True, kw_only=True)
class DatasetIndex:
    """The lists of a data set: samples per split, class names by label, listed videos that are absent, and
    `notes`: what was taken as what, and what was left out and why, a line each."""

    splits: dict[str, list[Sample]]
    classes: list[str]
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    held_out: bool = False
    """Whether `val` is a share that was held out here, not one that came with the data set."""


def index_dataset(
    folder: str | Path,
    layout: Layout,
    *,
    split: int = 1,
    val_share: float = 0.2,
) -> DatasetIndex:
    """Find the videos of a data set and their labels.

    Args:
        folder: the data set.
        layout: see the module's table.
        split: number of the official split (UCF101, HMDB51: 1 to 3).
        val_share: share held out where `folders` or `rawframes` come without split folders; chosen by a
            digest of the relative path, so that added files never move others.

    UCF101 and HMDB51 have no validation list: `val` and `test` are the official test list. Videos that a
    list names and that are not there are left out and returned in `missing`.

    Raises:
        InputError: the folder or a file of the layout is missing, or nothing was found.
    """
    folder = Path(folder)
    if layout not in LAYOUTS:
        raise InputError(
            f"layout: expected one of {', '.join(LAYOUTS)}, got '{layout}'{nearest(layout, LAYOUTS)}"
        )
    if not folder.is_dir():
        raise InputError(f"{folder}: expected the folder of the data set, found none")
    if not 0 <= val_share < 1:
        raise InputError(f"val_share: expected a share in [0, 1), got {val_share}")
    if layout == "kinetics":
        result = _kinetics(folder)
    elif layout == "ucf101":
        result = _ucf101(folder, split)
    elif layout == "hmdb51":
        result = _hmdb51(folder, split)
    elif layout == "ssv2":
        result = _ssv2(folder)
    elif layout == "ava":
        result = _ava(folder)
    else:
        result = _folders(folder, val_share, raw_frames=layout == "rawframes")
    if not any(result.splits.values()):
        raise InputError(
            f"{folder}: expected videos in the layout '{layout}', found none"
            + (f" of the {len(result.missing)} that its lists name" if result.missing else "")
            + "".join(f"; {line}" for line in result.notes[:5])
        )
    return result


def write_index(index: DatasetIndex, out: str | Path, *, relative_to: str | Path | None = None) -> list[Path]:
    """Write one list per non-empty split and `classes.txt` (line number = label) where there are classes;
    returns the paths.

    `relative_to`: write paths relative to this folder (read them with `--data-root`), else absolute ones.
    AVA's rows hold ids: their films are looked for below `--data-root`, or else below the list's folder.
    """
    out = Path(out)
    written = []
    for name, samples in index.splits.items():
        if not samples:
            continue
        shown = [
            replace(s, path=os.path.relpath(s.path, relative_to) if relative_to else os.path.abspath(s.path))
            for s in samples
        ]
        write_annotations(out / f"{name}.csv", shown)
        written.append(out / f"{name}.csv")
    if not index.classes:
        return written
    write_text(out / "classes.txt", "".join(f"{c}\n" for c in index.classes))
    return [*written, out / "classes.txt"]


def _folders(folder: Path, val_share: float, *, raw_frames: bool) -> DatasetIndex:
    found = read_class_folders(folder, raw_frames=raw_frames)
    label_of = {name: i for i, name in enumerate(found.classes)}
    splits: dict[str, list[Sample]] = {s: [] for s in SPLITS}
    if not found.videos and not raw_frames:
        return _flat(folder, val_share)
    for split, name, path, total in found.videos:
        target = split or _held_out(path.relative_to(folder), val_share)
        splits[target].append(Sample(path=str(path), label=label_of[name], num_frames=total))
    return DatasetIndex(splits=splits, classes=found.classes, notes=found.notes, held_out=not found.split)


def _flat(folder: Path, val_share: float) -> DatasetIndex:
    """Videos in no folder of a class: without labels."""
    left_out = LeftOut()
    splits: dict[str, list[Sample]] = {s: [] for s in SPLITS}
    videos = videos_below(folder, left_out)
    for path in videos:
        splits[_held_out(path.relative_to(folder), val_share)].append(Sample(path=str(path), label=-1))
    notes = left_out.say()
    if videos:
        notes.insert(0, f"no folders of classes: {len(videos)} videos without a label, for vmae pretrain")
    return DatasetIndex(splits=splits, classes=[], notes=notes, held_out=True)


def _held_out(relative: Path, share: float) -> str:
    digest = hashlib.sha256(relative.as_posix().encode("utf-8", "surrogateescape")).digest()
    return "val" if int.from_bytes(digest[:8], "big") / 2**64 < share else "train"


def _needed(folder: Path, *candidates: str) -> Path:
    for name in candidates:
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"{folder}: expected {' or '.join(candidates)}, found none")


def _optional(folder: Path, *candidates: str) -> Path | None:
    return next((folder / n for n in candidates if (folder / n).is_file()), None)


def _lines(path: Path) -> list[tuple[str, str]]:
    """Non-empty lines with where they stand."""
    text = path.read_text(encoding="utf-8-sig")
    return [(f"{path}:{n}", line.strip()) for n, line in enumerate(text.splitlines(), 1) if line.strip()]


def _kinetics(folder: Path) -> DatasetIndex:
    lists: dict[str, Path] = {}
    for split in SPLITS:
        names = [f"{prefix}{n}.csv" for n in SPELLINGS[split] for prefix in ("", "annotations/")]
        found = _optional(folder, *names)
        if found is not None:
            lists[split] = found
    if "train" not in lists:
        raise InputError(f"{folder}: expected train.csv or annotations/train.csv, found none")
    by_stem: dict[str, list[Path]] = {}
    for path in videos_below(folder):
        by_stem.setdefault(path.stem, []).append(path)
    rows: dict[str, list[tuple[str, str]]] = {}
    missing: list[str] = []
    for split, path in lists.items():
        with open(path, newline="", encoding="utf-8-sig") as f:
            reader = csv.DictReader(f)
            absent = {"label", "youtube_id", "time_start", "time_end"} - set(reader.fieldnames or ())
            if absent - ({"label"} if split == "test" else set()):
                raise InputError(
                    f"{path}:1: expected the columns label,youtube_id,time_start,time_end, "
                    f"got {','.join(reader.fieldnames or ('nothing',))}"
                )
            rows[split] = []
            for row in reader:
                try:
                    start, end = float(row["time_start"]), float(row["time_end"])
                except (TypeError, ValueError):
                    raise InputError(
                        f"{path}:{reader.line_num}: expected numbers in time_start and time_end, "
                        f"got {row['time_start']},{row['time_end']}"
                    ) from None
                stem = f"{row['youtube_id']}_{int(start):06d}_{int(end):06d}"
                candidates = by_stem.get(stem) or by_stem.get(row["youtube_id"]) or []
                if not candidates:
                    missing.append(stem)
                    continue
                # The same clip may lie in several split folders: take the one of this split.
                here = [c for c in candidates if set(SPELLINGS[split]) & set(c.relative_to(folder).parts)]
                rows[split].append((str((here or candidates)[0]), row.get("label") or ""))
    classes = sorted({label for split in rows.values() for _, label in split if label})
    label_of = {name: i for i, name in enumerate(classes)}
    splits = {
        split: [Sample(path=p, label=label_of.get(label, -1)) for p, label in rows.get(split, [])]
        for split in SPLITS
    }
    return DatasetIndex(splits=splits, classes=classes, missing=missing)


def _by_class_and_name(folder: Path) -> dict[tuple[str, str], Path]:
    return {(p.parent.name, p.name): p for p in videos_below(folder)}


def _ucf101(folder: Path, split: int) -> DatasetIndex:
    lists = folder / "ucfTrainTestlist"
    classes: list[str] = []
    for where, line in _lines(_needed(lists, "classInd.txt")):
        match = re.fullmatch(r"(\d+)\s+(\S+)", line)
        if match is None or int(match[1]) != len(classes) + 1:
            raise InputError(f"{where}: expected '{len(classes) + 1} CLASS', got '{line}'")
        classes.append(match[2])
    label_of = {name: i for i, name in enumerate(classes)}
    videos = _by_class_and_name(folder)
    splits: dict[str, list[Sample]] = {s: [] for s in SPLITS}
    missing = []
    for name, targets in (("trainlist", ("train",)), ("testlist", ("val", "test"))):
        for where, line in _lines(_needed(lists, f"{name}{split:02d}.txt")):
            relative = re.sub(r"\s+\d+$", "", line)
            class_name, _, file = relative.rpartition("/")
            if class_name not in label_of:
                raise InputError(f"{where}: expected a class of classInd.txt, got '{class_name}'")
            path = videos.get((class_name, file))
            if path is None:
                missing += [relative]
                continue
            for target in targets:
                splits[target].append(Sample(path=str(path), label=label_of[class_name]))
    return DatasetIndex(splits=splits, classes=classes, missing=missing)


def _hmdb51(folder: Path, split: int) -> DatasetIndex:
    lists = next(
        (folder / n for n in ("testTrainMulti_7030_splits", "splits") if (folder / n).is_dir()), None
    )
    if lists is None:
        raise InputError(f"{folder}: expected the folder testTrainMulti_7030_splits, found none")
    files = sorted(lists.glob(f"*_test_split{split}.txt"))
    if not files:
        raise InputError(f"{lists}: expected CLASS_test_split{split}.txt, found none")
    classes = [f.name[: -len(f"_test_split{split}.txt")] for f in files]
    videos = _by_class_and_name(folder)
    splits: dict[str, list[Sample]] = {s: [] for s in SPLITS}
    missing = []
    for label, (class_name, file) in enumerate(zip(classes, files, strict=True)):
        for where, line in _lines(file):
            match = re.fullmatch(r"(\S.*?)\s+([012])", line)
            if match is None:
                raise InputError(f"{where}: expected 'FILE 0|1|2', got '{line}'")
            if match[2] == "0":  # in neither list of this split
                continue
            path = videos.get((class_name, match[1]))
            if path is None:
                missing.append(f"{class_name}/{match[1]}")
                continue
            for target in ("train",) if match[2] == "1" else ("val", "test"):
                splits[target].append(Sample(path=str(path), label=label))
    return DatasetIndex(splits=splits, classes=classes, missing=missing)


def _ssv2(folder: Path) -> DatasetIndex:
    def candidates(name: str) -> list[str]:
        return [
            f"{place}{prefix}{name}"
            for place in ("", "labels/")
            for prefix in ("", "something-something-v2-")
        ]

    label_of = {k: int(v) for k, v in _json(_needed(folder, *candidates("labels.json"))).items()}
    classes = [name for name, _ in sorted(label_of.items(), key=lambda x: x[1])]
    if sorted(label_of.values()) != list(range(len(classes))):
        raise InputError(f"{folder}: expected labels 0..{len(classes) - 1} in labels.json, each once")
    videos = {p.stem: p for p in videos_below(folder)}
    splits: dict[str, list[Sample]] = {s: [] for s in SPLITS}
    missing = []
    for split, name in (("train", "train.json"), ("val", "validation.json"), ("test", "test.json")):
        path = _optional(folder, *candidates(name))
        if path is None:
            if split == "test":
                continue
            raise InputError(f"{folder}: expected {name}, found none")
        for number, entry in enumerate(_json(path), 1):
            template = entry.get("template", "").replace("[", "").replace("]", "")
            if split != "test" and template not in label_of:
                raise InputError(
                    f"{path}: entry {number}: expected a template of labels.json, got '{template}'"
                )
            video = videos.get(str(entry["id"]))
            if video is None:
                missing.append(str(entry["id"]))
                continue
            splits[split].append(Sample(path=str(video), label=label_of.get(template, -1)))
    return DatasetIndex(splits=splits, classes=classes, missing=missing)


def _ava(folder: Path) -> DatasetIndex:
    def newest(pattern: str) -> Path | None:
        found = sorted(p for place in ("", "annotations/") for p in folder.glob(f"{place}{pattern}"))
        return max(found, key=lambda p: p.name) if found else None

    splits: dict[str, list[Sample]] = {s: [] for s in SPLITS}
    missing: set[str] = set()
    for split in ("train", "val"):
        listed = newest(f"ava_{split}_v[0-9]*.csv")
        if listed is None:
            if split == "val":
                continue
            raise InputError(
                f"{folder}: expected ava_train_v2.2.csv or annotations/ava_train_v2.2.csv, found none"
            )
        # The same version's, or none: another version excludes other key frames.
        unwanted = listed.with_name(listed.name.replace(split, f"{split}_excluded_timestamps", 1))
        excluded = read_excluded(unwanted) if unwanted.is_file() else set()
        frames = read_ava(listed, folder, excluded=excluded)
        absent = {path for path in {s.path for s in frames} if not os.path.isfile(path)}
        missing |= {os.path.basename(path) for path in absent}
        splits[split] = [s for s in frames if s.path not in absent]
    # The map of all actions rather than that of the evaluated ones.
    label_map = newest("ava_action_list_v[0-9].[0-9].pbtxt") or newest("ava_action_list_v*.pbtxt")
    names = read_label_map(label_map) if label_map is not None else {}
    classes = [names.get(i, "") for i in range(1, max(names, default=0) + 1)]
    return DatasetIndex(splits=splits, classes=classes, missing=sorted(missing))


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as e:
        raise InputError(f"{path}: expected JSON, got {e}") from None
