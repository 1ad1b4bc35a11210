"""Folders of images and .npy clips: which images a folder holds, in which order, and what they show."""

from __future__ import annotations

import os
import re

import numpy as np

from vmae.core.errors import VideoError
from vmae.core.video.container import first_line

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


def frame_files(folder: str) -> list[str]:
    """The image files of a folder in the order of the numbers in their names (`img_2` before `img_10`)."""
    names = [n for n in os.listdir(folder) if n.lower().endswith(IMAGE_SUFFIXES)]
    return sorted(names, key=lambda n: [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", n)])


def read_image(folder: str, name: str) -> np.ndarray:
    import cv2

    path = os.path.join(folder, name)
    with open(path, "rb") as f:  # cv2.imread prints a warning and cannot do every unicode path
        data = np.frombuffer(f.read(), np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR) if len(data) else None
    if image is None:
        raise VideoError(path, "corrupt", "not an image")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def open_npy(path: str) -> np.ndarray:
    try:
        clip: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as e:
        raise VideoError(path, "unreadable", first_line(e)) from e
    if clip.dtype != np.uint8 or clip.ndim != 4 or clip.shape[-1] != 3 or not clip.size:
        found = f"{clip.dtype} {list(clip.shape)}"
        del clip  # a traceback would keep the mapped file open
        raise VideoError(path, "corrupt", f"expected uint8 [T, H, W, 3], got {found}")
    return clip


def resize_frames(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 `[T, H, W, 3]` to `[T, height, width, 3]`: area when shrinking, bilinear when enlarging."""
    import cv2

    if frames.shape[1:3] == (height, width):
        return frames
    method = cv2.INTER_AREA if height < frames.shape[1] else cv2.INTER_LINEAR
    out = np.empty((len(frames), height, width, 3), np.uint8)
    for k, frame in enumerate(frames):
        cv2.resize(frame, (width, height), dst=out[k], interpolation=method)
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
