"""Pictures out of arrays: sprite sheets for the browser, the error map, and files to keep."""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

ERROR_MAX = 0.25
"""End of the error map's fixed scale: absolute error per pixel, mean over channels, pixels in [0, 1]."""
HIDDEN_GREY = 128
_LOSSLESS_PIXELS = 500_000


def sheet_columns(frames: int, width: int) -> int:
    """Frames side by side in a sprite sheet, so that it stays within WebP's 16383 pixels."""
    return max(1, min(frames, 16000 // width))


def sprite_sheet(frames: np.ndarray, quality: int | None = None) -> str:
    """uint8 [T, H, W, 3] as one WebP data URL, frames left to right, then down.

    Without a `quality`, small sheets are lossless and large ones lossy at 92: what is measured by eye must
    not be the codec's.
    """
    t, h, w, _ = frames.shape
    columns = sheet_columns(t, w)
    rows = -(-t // columns)
    sheet = np.zeros((rows, columns, h, w, 3), np.uint8)
    sheet.reshape(rows * columns, h, w, 3)[:t] = frames
    image = Image.fromarray(sheet.transpose(0, 2, 1, 3, 4).reshape(rows * h, columns * w, 3))
    buffer = io.BytesIO()
    if quality is None and t * h * w <= _LOSSLESS_PIXELS:
        image.save(buffer, "WEBP", lossless=True, quality=0, method=0)
    else:
        image.save(buffer, "WEBP", quality=quality or 92, method=1)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


@functools.cache
def _palette() -> np.ndarray:
    """uint8 [256, 3]: dark to bright, evenly perceived, told apart with any colour vision (inferno)."""
    from matplotlib import colormaps

    return (colormaps["inferno"](np.arange(256))[:, :3] * 255).round().astype(np.uint8)


def palette_stops(count: int = 9) -> list[str]:
    """The palette's colours for a legend, as CSS."""
    return [f"rgb({r},{g},{b})" for r, g, b in _palette()[np.linspace(0, 255, count).astype(int)]]


def colourise(share: np.ndarray) -> np.ndarray:
    """Numbers in [0, 1] as the palette's colours, uint8 [..., 3]."""
    return _palette()[(share * 255).clip(0, 255).round().astype(np.uint8)]


def error_map(original: np.ndarray, made: np.ndarray) -> np.ndarray:
    """Absolute error (mean over channels) of two uint8 [T, H, W, C] as colours uint8 [T, H, W, 3]."""
    error = np.abs(original.astype(np.int16) - made.astype(np.int16)).mean(-1) / 255
    return colourise(error / ERROR_MAX)


def contact_sheet(
    rows: Sequence[tuple[str, np.ndarray]], *, max_columns: int = 16, scale: int = 1
) -> Image.Image:
    """One picture: a labelled row of frames for each (label, uint8 [T, H, W, 3])."""
    t, h, w, _ = rows[0][1].shape
    pick = np.linspace(0, t - 1, min(t, max_columns)).round().astype(int)
    h, w, gap, head = h * scale, w * scale, 2, 16
    sheet = Image.new("RGB", (len(pick) * (w + gap) - gap, len(rows) * (h + head + gap) - gap), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (label, frames) in enumerate(rows):
        top = i * (h + head + gap)
        draw.text((2, top + 2), label, fill="black")
        for j, k in enumerate(pick):
            frame = Image.fromarray(frames[k]).resize((w, h), Image.Resampling.NEAREST)
            sheet.paste(frame, (j * (w + gap), top + head))
    return sheet


def png_bytes(rows: Sequence[tuple[str, np.ndarray]], scale: int = 1) -> bytes:
    """`contact_sheet` as a PNG file."""
    buffer = io.BytesIO()
    contact_sheet(rows, scale=scale).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def side_by_side(rows: Sequence[tuple[str, np.ndarray]], scale: int = 1) -> np.ndarray:
    """The rows' frames next to each other under their labels: uint8 [T, H', W', 3], even sides."""
    t = rows[0][1].shape[0]
    frames = []
    for k in range(t):
        frame = contact_sheet([("", rows[0][1][k : k + 1])], scale=scale)
        wide = Image.new("RGB", (len(rows) * (frame.width + 4) - 4, frame.height), "white")
        draw = ImageDraw.Draw(wide)
        for i, (label, video) in enumerate(rows):
            left = i * (frame.width + 4)
            wide.paste(contact_sheet([("", video[k : k + 1])], scale=scale), (left, 0))
            draw.text((left + 2, 2), label, fill="black")
        frames.append(np.asarray(wide))
    out = np.stack(frames)
    return out[:, : out.shape[1] // 2 * 2, : out.shape[2] // 2 * 2]


def gif_bytes(frames: np.ndarray, fps: float) -> bytes:
    """uint8 [T, H, W, 3] as an endless GIF."""
    images = [Image.fromarray(f) for f in frames]
    buffer = io.BytesIO()
    images[0].save(
        buffer, "GIF", save_all=True, append_images=images[1:], duration=max(20, round(1000 / fps)), loop=0
    )
    return buffer.getvalue()


def mp4_bytes(frames: np.ndarray, fps: float) -> bytes:
    """uint8 [T, H, W, 3] (even sides) as H.264 in mp4."""
    from fractions import Fraction

    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "16"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()
