"""Folders of classes: which folder is a split, which a class, which files are videos, and what is left out.

    train/CLASS/..., val/CLASS/..., test/CLASS/...   the usual spellings: Training, valid, dev_set, ...
    CLASS/...                                        a share is held out

A folder that is named like a split is one where it holds folders of videos and is not alone among others of
other names; else it is a class (a train beside a bus). Hidden files and what computers leave behind
(`__MACOSX`, `._a.mp4`, `@eaDir`) are neither.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from vmae.core.errors import InputError, VideoError
from vmae.core.video.samples import VIDEO_SUFFIXES
from vmae.core.video.stills import IMAGE_SUFFIXES, frame_files, is_made_from, name_words

SPLITS = ("train", "val", "test")
SPELLINGS = {
    "train": ("train", "training", "trainval"),
    "val": ("val", "validate", "validation", "valid", "dev", "devel", "development", "eval", "evaluation"),
    "test": ("test", "testing"),
}
_BESIDE = frozenset({"set", "split", "data", "videos", "video", "clips", "rawframes", "frames", "list"})
_LITTER = frozenset({"__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found"})


def split_of(name: str) -> str | None:
    """The split that a folder's or list's name says, in any of the usual spellings; None where it says none
    (or two)."""
    words = [w for w in re.split(r"[^a-z]+", name.lower()) if w and w not in _BESIDE]
    for split, spellings in SPELLINGS.items():
        if len(words) == 1 and any(words[0] in (s, f"{s}set", f"{s}s") for s in spellings):
            return split
    return None


@dataclass
class LeftOut:
    """What was found and is in no list, and why."""

    files: Counter[str] = field(default_factory=Counter)
    """By suffix."""
    litter: int = 0
    lines: list[str] = field(default_factory=list)

    def say(self) -> list[str]:
        """A line each."""
        lines = list(self.lines)
        if self.files:
            common = self.files.most_common(8)
            named = ", ".join(f"{n} {suffix or 'without a suffix'}" for suffix, n in common)
            others = sum(self.files.values()) - sum(n for _, n in common)
            named += f", {others} others" if others else ""
            lines.append(f"left out, no suffix of what this layout lists: {named}")
        if self.litter:
            lines.append(f"left out, hidden or left behind by a computer: {self.litter} files and folders")
        return lines


def is_litter(name: str) -> bool:
    """Whether a name is hidden or one that computers leave behind."""
    return name.startswith(".") or name.lower() in _LITTER


def walk(folder: Path, left_out: LeftOut) -> Iterator[tuple[Path, list[str]]]:
    """`(folder, names of its files)` of a folder and those below, without litter; in order."""
    for parent, folders, names in os.walk(folder, followlinks=True):
        left_out.litter += sum(map(is_litter, [*folders, *names]))
        folders[:] = sorted(f for f in folders if not is_litter(f))
        yield Path(parent), sorted(n for n in names if not is_litter(n))


def videos_below(folder: Path, left_out: LeftOut | None = None) -> list[Path]:
    """Files with a suffix of a video, anywhere below."""
    left_out = LeftOut() if left_out is None else left_out
    found = []
    for parent, names in walk(folder, left_out):
        for name in names:
            suffix = os.path.splitext(name)[1].lower()
            if suffix in VIDEO_SUFFIXES:
                found.append(parent / name)
            else:
                left_out.files[suffix] += 1
    return sorted(found)


def frame_folders_below(folder: Path, left_out: LeftOut) -> list[tuple[Path, int]]:
    """Folders of images anywhere below, each with the number of its video's frames."""
    found = []
    for parent, names in walk(folder, left_out):
        images = [n for n in names if n.lower().endswith(IMAGE_SUFFIXES)]
        left_out.files.update(os.path.splitext(n)[1].lower() for n in set(names) - set(images))
        if not images:
            continue
        if parent != folder and is_made_from(name_words(parent.name)):
            left_out.lines.append(f"left out, made from a video's frames by its name: {parent}")
            continue
        try:
            frames = frame_files(str(parent))
        except VideoError as e:
            left_out.lines.append(f"left out: {e}")
            continue
        others = len(images) - len(frames)
        if others:
            left_out.lines.append(f"left out: {others} images in {parent} unlike {frames[0]} ({len(frames)})")
        found.append((parent, len(frames)))
    return sorted(found)


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, without litter, by name."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not is_litter(p.name))


@dataclass
class ClassFolders:
    """The classes of a folder: `videos` are `(split or "", class, path, number of frames or None)`."""

    videos: list[tuple[str, str, Path, int | None]]
    classes: list[str]
    split: bool
    """Whether there are folders of splits."""
    notes: list[str]


def read_class_folders(folder: Path, *, raw_frames: bool) -> ClassFolders:
    """Find what a folder holds; see the module.

    Raises:
        InputError: two folders that are the same split.
    """
    left_out, notes = LeftOut(), []
    splits = _split_folders(folder, raw_frames)
    for place in subfolders(folder):
        if splits and place not in splits:
            left_out.lines.append(f"left out, in no split: the folder {place.name}")
        elif not splits and split_of(place.name):
            notes.append(f"{place.name} taken as a class: it holds no classes, or is the only split")
    notes += [f"{split} from {place.name}" for place, split in splits.items()]
    videos: list[tuple[str, str, Path, int | None]] = []
    names: dict[str, set[str]] = {}
    for root, split in (splits or {folder: ""}).items():
        loose = [p for p in root.iterdir() if p.is_file() and not is_litter(p.name)]
        beside = sum(p.suffix.lower() in VIDEO_SUFFIXES for p in loose)
        if beside:
            left_out.lines.append(f"left out, in no class: {beside} videos directly in {root}")
        left_out.litter += sum(is_litter(p.name) for p in root.iterdir())
        for place in subfolders(root):
            # One name to the eye is one class: a Mac writes accents as letters of their own.
            name = unicodedata.normalize("NFC", place.name)
            found: list[tuple[Path, int | None]]
            if raw_frames:
                found = [*frame_folders_below(place, left_out)]
            else:
                found = [(p, None) for p in videos_below(place, left_out)]
            if not found:
                kind = "images" if raw_frames else "videos"
                left_out.lines.append(f"left out, without {kind}: the folder {place}")
            else:
                names.setdefault(name, set()).add(split)
            videos += [(split, name, path, total) for path, total in found]
    said = notes + _odd_classes(names) + left_out.say()
    return ClassFolders(videos, sorted(names), bool(splits), said)


def _split_folders(folder: Path, raw_frames: bool) -> dict[Path, str]:
    """The folders that are splits; none where the folder is one of classes."""
    suffixes = IMAGE_SUFFIXES if raw_frames else VIDEO_SUFFIXES

    def depths(place: Path) -> Iterator[int]:
        """How deep the videos below lie: 0 in the folder itself."""
        for parent, names in walk(place, LeftOut()):
            if any(n.lower().endswith(suffixes) for n in names):
                yield len(parent.relative_to(place).parts) - raw_frames

    places = [p for p in subfolders(folder) if any(True for _ in depths(p))]
    splits = {p: split for p in places if (split := split_of(p.name)) and any(d > 0 for d in depths(p))}
    if len(splits) < 2 and len(splits) < len(places):
        return {}
    for split in SPLITS:
        alike = [p.name for p, s in splits.items() if s == split]
        if len(alike) > 1:
            raise InputError(f"{folder}: expected one folder for {split}, got {' and '.join(alike)}")
    return {p: s for split in SPLITS for p, s in splits.items() if s == split}


def _odd_classes(names: dict[str, set[str]]) -> list[str]:
    lines = []
    alike: dict[str, list[str]] = {}
    for name in sorted(names):
        alike.setdefault(re.sub(r"[\W_]+", "", name).casefold() or name, []).append(name)
    for group in alike.values():
        if len(group) > 1:
            lines.append(f"classes of nearly one name, taken as different ones: {', '.join(group)}")
    if any("train" in splits for splits in names.values()):
        untrained = [name for name in sorted(names) if "train" not in names[name]]
        if untrained:
            lines.append(f"classes without a training video: {', '.join(untrained[:10])}")
    return lines
