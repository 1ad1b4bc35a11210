"""Folders of images and .npy clips: which images a folder holds, in which order, and what they show."""

from __future__ import annotations

import os
import re
import select
import stat
from collections.abc import Sequence

import numpy as np

from vmae.core.errors import VideoError
from vmae.core.video.container import DEFAULT_TIMEOUT_S, first_line, require_pixels
from vmae.core.video.scale import scale_into

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
# Words of names that say that an image is a frame of the video, or that it is made from it.
_FRAMES = frozenset({"", "img", "image", "im", "frame", "frames", "rgb", "color", "colour", "pic", "i", "f"})
_MADE = frozenset({
    "flow", "flowx", "flowy", "optical", "opticalflow", "tvl", "brox", "depth", "disparity", "disp", "mask",
    "masks", "seg", "segmentation", "label", "labels", "thumb", "thumbs", "thumbnail", "heatmap", "saliency",
    "edge", "edges", "pose", "skeleton", "ir", "infrared", "thermal",
})  # fmt: skip
_COMPONENTS = frozenset("xyuv")


def frame_files(folder: str) -> list[str]:
    """The images of a folder that are the frames of its video, in the order of the numbers in their names
    (`img_2` before `img_10`). Hidden files are none.

    Where the names are of several kinds (`img_00001.jpg`, `flow_x_00001.jpg`) the frames are those that a
    word of the name calls so, or that remain without flow, depth, masks and the like.

    Raises:
        VideoError: `corrupt` where several kinds remain, or a name of an image is that of a folder;
            `missing`, `not_a_file` where it is a link to nothing or a device.
    """
    with os.scandir(folder) as entries:
        names = [
            e.name
            for e in entries
            if not e.name.startswith(".") and e.name.lower().endswith(IMAGE_SUFFIXES) and _is_image(e)
        ]
    kinds = image_kinds(names)
    if len(kinds) > 1:
        names = _frames_of(kinds)
        if not names:
            found = ", ".join(f"{k} ({len(v)})" for k, v in sorted(kinds.items())[:6])
            raise VideoError(
                folder, "corrupt", f"expected the images of one video, got several kinds: {found}"
            )
    return sorted(names, key=lambda n: [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", n)])


def image_kinds(names: Sequence[str]) -> dict[str, list[str]]:
    """Names by what they look like without their numbers: `img_#.jpg`, `flow_x_#.jpg`. Two suffixes of one
    pattern that share no number are one kind."""
    kinds: dict[str, list[str]] = {}
    for name in names:
        stem, suffix = os.path.splitext(name)
        kinds.setdefault(re.sub(r"\d+", "#", stem) + suffix.lower().replace(".jpeg", ".jpg"), []).append(name)
    stems: dict[str, list[str]] = {}
    for kind in kinds:
        stems.setdefault(os.path.splitext(kind)[0], []).append(kind)
    for stem, alike in stems.items():
        together = [n for kind in alike for n in kinds[kind]]
        if len(alike) > 1 and len({os.path.splitext(n)[0] for n in together}) == len(together):
            for kind in alike:
                del kinds[kind]
            kinds[f"{stem}.*"] = together
    return kinds


def _frames_of(kinds: dict[str, list[str]]) -> list[str]:
    """The names that are a video's frames; none where that cannot be told."""
    by_words = {k: name_words(os.path.splitext(k)[0]) for k in kinds}
    plain = {k: w for k, w in by_words.items() if not is_made_from(w) and not w <= _COMPONENTS}
    together = [n for k in plain for n in kinds[k]]
    if len(plain) == 1 or 2 * len(plain) > len(together):
        return together  # names that follow no pattern are of one kind
    named = [k for k, w in plain.items() if w & _FRAMES]
    return kinds[named[0]] if len(named) == 1 else []


def name_words(name: str) -> set[str]:
    """The words of a name, in small letters; `{""}` where it has none."""
    return set(re.split(r"[^a-z]+", name.lower())) - {""} or {""}


def is_made_from(words: set[str]) -> bool:
    """Whether a name's words say that it is flow, depth, masks and the like: made from a video's frames."""
    return bool(words & _MADE)


def _is_image(entry: os.DirEntry[str]) -> bool:
    try:
        mode = entry.stat().st_mode if entry.is_symlink() or not entry.is_file() else stat.S_IFREG
    except FileNotFoundError:
        raise VideoError(entry.path, "missing", "a link to nothing") from None
    except OSError as e:
        raise VideoError(entry.path, "unreadable", first_line(e)) from None
    if stat.S_ISDIR(mode):
        raise VideoError(entry.path, "corrupt", "expected an image, got a folder")
    # A pipe may be written to: opening it is given up after the time limit.
    if not stat.S_ISREG(mode) and not stat.S_ISFIFO(mode):
        raise VideoError(entry.path, "not_a_file", "expected an image")
    return True


def refuse_pipes(path: str) -> None:
    """Raise VideoError, `not_a_file`, for a folder with a pipe among its images: nothing may ever come."""
    if os.path.isdir(path):
        for name in frame_files(path):
            if stat.S_ISFIFO(os.stat(os.path.join(path, name)).st_mode):
                raise VideoError(os.path.join(path, name), "not_a_file", "expected an image, got a pipe")


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _wait_for_writer(path: str, pipe: int) -> None:
    """Until a pipe has something to read; VideoError, `timeout`, where nothing comes."""
    if not select.select([pipe], [], [], DEFAULT_TIMEOUT_S)[0]:
        raise VideoError(path, "timeout", f"a pipe to which nothing was written for {DEFAULT_TIMEOUT_S:g} s")
    os.set_blocking(pipe, True)


def read_image(folder: str, name: str) -> np.ndarray:
    """uint8 `[H, W, 3]`, RGB, turned by its EXIF mark.

    Raises:
        VideoError: `missing`, `no_permission`, `unreadable`, `corrupt`; `too_large`, said by its head.
    """
    import cv2

    path = os.path.join(folder, name)
    try:
        with open(path, "rb", opener=_without_waiting) as f:  # cv2.imread: not every unicode path
            if stat.S_ISFIFO(os.fstat(f.fileno()).st_mode):
                _wait_for_writer(path, f.fileno())
            data = f.read()
    except OSError as e:
        kinds = {FileNotFoundError: "missing", PermissionError: "no_permission"}
        raise VideoError(path, kinds.get(type(e), "unreadable"), first_line(e)) from None
    size = _image_size(data)
    if size is None:
        raise VideoError(path, "corrupt", "not an image")
    require_pixels(path, *size)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as e:
        raise VideoError(path, "corrupt", first_line(e)) from None
    if image is None:
        raise VideoError(path, "corrupt", "not an image")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _image_size(data: bytes) -> tuple[int, int] | None:
    """`(height, width)` that the head of a PNG, JPEG, BMP or WebP states; None where it is none of these."""
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big")
    if data[:2] == b"BM":
        width, height = (int.from_bytes(data[k : k + 4], "little", signed=True) for k in (18, 22))
        return abs(height), abs(width)
    if data[:2] == b"\xff\xd8":
        return _jpeg_size(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        kind = data[12:16]
        if kind == b"VP8X":
            return 1 + int.from_bytes(data[27:30], "little"), 1 + int.from_bytes(data[24:27], "little")
        if kind == b"VP8L":
            bits = int.from_bytes(data[21:25], "little")
            return 1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF)
        width, height = (int.from_bytes(data[k : k + 2], "little") & 0x3FFF for k in (26, 28))
        return height, width
    return None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """From the first frame header (ITU-T T.81, B.2.2)."""
    at = 2
    while at + 9 <= len(data):
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF or 0xD0 <= marker <= 0xD9 or marker == 0x01:  # fill, and markers without a length
            at += 1 if marker == 0xFF else 2
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


MAX_CHANNELS = 64
"""Of a `.npy` clip: more is taken for a mistake in the order of its axes."""


def open_npy(path: str, channels: int | None = None) -> np.ndarray:
    """A mapped clip, uint8 `[T, H, W, C]`; raises VideoError for any other array, and for another C than
    `channels` (None: any up to 64)."""
    try:
        clip: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as e:
        raise VideoError(path, "unreadable", first_line(e)) from e
    fits = clip.shape[-1:] == (channels,) if channels is not None else clip.shape[-1:] <= (MAX_CHANNELS,)
    if clip.dtype != np.uint8 or clip.ndim != 4 or not fits or not clip.size:
        found = f"{clip.dtype} {list(clip.shape)}"
        del clip  # a traceback would keep the mapped file open
        wanted = "C" if channels is None else channels
        raise VideoError(path, "corrupt", f"expected uint8 [T, H, W, {wanted}], got {found}")
    require_pixels(path, *clip.shape[1:3])
    return clip


def resize_frames(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 `[T, H, W, C]` to `[T, height, width, C]`: area when shrinking, bilinear when enlarging."""
    import cv2

    if frames.shape[1:3] == (height, width):
        return frames
    method = cv2.INTER_AREA if height < frames.shape[1] else cv2.INTER_LINEAR
    out = np.empty((len(frames), height, width, frames.shape[-1]), np.uint8)
    for k, frame in enumerate(frames):
        scale_into(frame, out[k], method)
    return out


def first_frame(path: str, start: int) -> int:
    """Where a stretch that begins at `start` begins, counted from 0.

    In a folder of images `start` is the number in the name of the first image, as in V2's lists (`1` for
    `img_00001.jpg`); 0 is the first image whatever its name.

    Raises:
        VideoError: `truncated`, where no image has that number.
    """
    if start == 0 or not os.path.isdir(path):
        return start
    for place, name in enumerate(frame_files(path)):
        digits = re.findall(r"\d+", os.path.splitext(name)[0])
        if digits and int(digits[-1]) == start:
            return place
    raise VideoError(path, "truncated", f"the list asks for image number {start}, the folder has none")
