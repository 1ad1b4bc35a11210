"""Reconstructions to keep: labelled rows of frames as a picture, a GIF or a film, and the error map."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from vmae.core.measure.reconstruct import Reconstruction, to_rgb

ERROR_MAX = 0.25
"""End of the error map's fixed scale: absolute error per pixel, mean over channels, pixels in [0, 1]."""
KINDS = ("png", "gif", "mp4")
TARGET_PIXELS = 192
"""Pictures of small models are enlarged to about this height, by whole factors."""
PCA_LABEL = "tokens by principal components"
Rows = Sequence[tuple[str, np.ndarray]]
"""(label, uint8 `[T, H, W, 3]`) of each row; all of one size."""


def film_rows(made: Reconstruction, forms: Sequence[str]) -> list[tuple[str, np.ndarray]]:
    """A reconstruction's first clip, its masked input, the given forms, and the error map of the last one.

    The labels say what each picture uses. `form_label` names the forms alone.
    """
    rows = [("original", to_rgb(made.original[0])), ("encoder sees", to_rgb(made.masked_input[0]))]
    rows += [(form_label(made.target, form), to_rgb(getattr(made, form)[0])) for form in forms]
    last = getattr(made, forms[-1])[0]
    return [*rows, (f"error 0..{ERROR_MAX:g}", error_map(made.original[0], last))]


def form_label(target: str, form: str) -> str:
    """What stands above a form's picture; `target` is the model's."""
    if target == "raw":
        return "predicted pixels"
    return "as trained (true patch statistics)" if form == "as_trained" else "model only"


def film(kind: str, rows: Rows, fps: float) -> bytes:
    """The bytes of a file of one of KINDS, its pictures enlarged by a whole factor to about TARGET_PIXELS."""
    scale = max(1, round(TARGET_PIXELS / rows[0][1].shape[1]))
    if kind == "png":
        return png_bytes(rows, scale=max(1, scale // 2))
    side = side_by_side(rows, scale=scale)
    return gif_bytes(side, fps) if kind == "gif" else mp4_bytes(side, fps)


@functools.cache
def _palette() -> np.ndarray:
    """uint8 [256, 3]: dark to bright, evenly perceived, told apart with any colour vision (inferno)."""
    from matplotlib import colormaps

    return (colormaps["inferno"](np.arange(256))[:, :3] * 255).round().astype(np.uint8)


def palette_stops() -> list[str]:
    """The palette's colours for a legend, as CSS."""
    return [f"rgb({r},{g},{b})" for r, g, b in _palette()[np.linspace(0, 255, 9).astype(int)]]


def colourise(share: np.ndarray) -> np.ndarray:
    """Numbers in [0, 1] as the palette's colours, uint8 [..., 3]."""
    return _palette()[(share * 255).clip(0, 255).round().astype(np.uint8)]


def error_map(original: np.ndarray, made: np.ndarray) -> np.ndarray:
    """Absolute error (mean over channels) of two uint8 [T, H, W, C] as colours uint8 [T, H, W, 3]."""
    error = np.abs(original.astype(np.int16) - made.astype(np.int16)).mean(-1) / 255
    return colourise(error / ERROR_MAX)


def contact_sheet(rows: Rows, *, max_columns: int = 16, scale: float = 1) -> Image.Image:
    """One picture: a labelled row of frames for each (label, uint8 [T, H, W, 3])."""
    t, h, w, _ = rows[0][1].shape
    pick = np.linspace(0, t - 1, min(t, max_columns)).round().astype(int)
    h, w, gap, head = round(h * scale), round(w * scale), 2, 16
    resample = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX
    sheet = Image.new("RGB", (len(pick) * (w + gap) - gap, len(rows) * (h + head + gap) - gap), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (label, frames) in enumerate(rows):
        top = i * (h + head + gap)
        draw.text((2, top + 2), label, fill="black")
        for j, k in enumerate(pick):
            frame = Image.fromarray(frames[k]).resize((w, h), resample)
            sheet.paste(frame, (j * (w + gap), top + head))
    return sheet


def png_bytes(rows: Rows, scale: int = 1) -> bytes:
    """`contact_sheet` as a PNG file."""
    buffer = io.BytesIO()
    contact_sheet(rows, scale=scale).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def side_by_side(rows: Rows, scale: int = 1) -> np.ndarray:
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
