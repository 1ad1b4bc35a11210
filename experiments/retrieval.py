"""Which videos look like this one: cosine similarity on windowed features, and a page that plays them."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vmae.core.errors import InputError, nearest
from vmae.core.files import write_text
from vmae.core.measure.windowed import window_features
from vmae.core.video.windows import WindowConfig
from vmae.experiments.run import default_device
from vmae.experiments.tracking import Store
from vmae.experiments.windowed import load_for_windows, read_features, read_folder


@dataclass(frozen=True, kw_only=True)
class Match:
    """A video of the index: its best window, in seconds (None where the rate is unknown), and similarity."""

    name: str
    path: str
    similarity: float
    start_s: float | None
    end_s: float | None


def retrieve(
    store: Store, query: str, index: Path, *, top: int = 10, checkpoint: str | None = None
) -> tuple[str, list[Match]]:
    """The query's file, and the `top` videos of the folder `index` that come nearest to it.

    `query` is a video of the index by name (it is left out of the answer), or a file, whose features are made
    with the index's model (`checkpoint`: where that is, if it has moved). The query is the mean of its
    windows; a video's similarity is that of the window nearest to it. Raises InputError for an unknown name,
    an empty index, or another model than the index's.
    """
    settings, videos = read_folder(index)
    known = {v["name"]: v for v in videos}
    if not known:
        raise InputError(f"{index}: expected features of at least one video, got none")
    dim = settings["dim"]
    if query in known:
        features, shown = read_features(index / f"{query}.npy", dim), known[query]["path"]
    elif Path(query).exists():
        source = checkpoint or settings["model"]
        model, _, weights, _ = load_for_windows(store, source)
        if weights != settings["weights"]:
            raise InputError(f"expected the weights that {index} was made with (--checkpoint), got {source}")
        names = ("frames", "window", "stride", "views")
        config = WindowConfig(
            size=tuple(settings["size"]),
            fps=settings.get("fps", 0.0),
            **{k: settings[k] for k in names},
        )
        features, shown = window_features(model, query, config, device=default_device()), query
    else:
        raise InputError(f"expected a video of {index} or a file, got '{query}'{nearest(query, list(known))}")
    wanted = _unit(features.mean(0)[None])[0]
    matches = []
    for name, row in known.items():
        if name == query:
            continue
        similarity = _unit(read_features(index / f"{name}.npy", dim)) @ wanted
        best = int(similarity.argmax())
        start = best * settings["stride"]
        end = min(start + settings["window"], row["frames"])
        fps = row["fps"]
        matches.append(
            Match(
                name=name,
                path=row["path"],
                similarity=float(similarity[best]),
                start_s=start / fps if fps else None,
                end_s=end / fps if fps else None,
            )
        )
    matches.sort(key=lambda m: -m.similarity)
    return shown, matches[:top]


def write_page(file: Path, query: str, matches: list[Match]) -> None:
    """An HTML page with a player of the query and of every match, at the window that was found."""
    cards = [_card("query", query, "", None)]
    for k, m in enumerate(matches, 1):
        span = None if m.start_s is None or m.end_s is None else (m.start_s, m.end_s)
        cards.append(_card(f"{k}. {m.name}", m.path, f"{m.similarity:.3f}", span))
    write_text(
        file,
        "<!doctype html><meta charset=utf-8><title>vmae retrieve</title>"
        "<style>body{font:14px sans-serif;display:flex;flex-wrap:wrap;gap:16px}figure{margin:0}"
        "video{width:280px;display:block;background:#000}</style>" + "".join(cards) + "\n",
    )


def _card(title: str, path: str, note: str, span: tuple[float, float] | None) -> str:
    source = Path(path).absolute().as_uri() + (f"#t={span[0]:.3f},{span[1]:.3f}" if span else "")
    times = f" · {span[0]:.2f} to {span[1]:.2f} s" if span else ""
    return (
        f'<figure><video controls muted preload=metadata src="{html.escape(source)}"></video>'
        f"<figcaption>{html.escape(title)} {note}{times}</figcaption></figure>"
    )


def _unit(x: np.ndarray) -> np.ndarray:
    unit: np.ndarray = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    return unit
