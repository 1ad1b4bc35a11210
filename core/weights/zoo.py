"""The published checkpoints by name, and `--init`: a local path, a zoo name or `hf://org/name`."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vmae.core.errors import CheckpointError, InputError, nearest

if TYPE_CHECKING:
    # torch is imported only to read a checkpoint, not to list or fetch one.
    from vmae.core.weights.models import Loaded

_HF = "hf://"
_DRIVE = "https://drive.google.com/file/d/"
# Frames x segments x crops of the published tests.
_VIEWS = {"K400": "16x5x3", "SSv2": "16x2x3", "UCF101": "16x5x3"}


@dataclass(frozen=True, kw_only=True)
class ZooEntry:
    """One published checkpoint. Results are the publisher's, on the data set named; None: not published."""

    name: str
    size: str
    task: str
    """"pretrain", "finetune" or "distilled" (a classifier distilled from a larger one)."""
    data: str
    recipe: str
    """How it was trained, in words."""
    where: str
    """`hf://...`, which `--init` fetches by itself, or a page to download from by hand."""
    views: str = ""
    """Frames x segments x crops of the published test."""
    top1: float | None = None
    """Percent."""
    top5: float | None = None
    note: str = ""

    @property
    def fetchable(self) -> bool:
        """Whether `--init` can fetch it."""
        return self.where.startswith(_HF)


def _v1(
    data: str, size: str, epochs: int, file: str, *, tuned: str, how: str, top1: float, top5: float
) -> tuple[ZooEntry, ZooEntry]:
    """A row of MCG-NJU/VideoMAE's MODEL_ZOO.md: a pre-training and the fine-tuning from it."""
    name = f"v1-{data.lower()}-{size}-{epochs}"
    first = f"tube {0.75 if data == 'UCF101' else 0.9}, {epochs} epochs"
    pretrain = ZooEntry(name=name, size=size, task="pretrain", data=data, recipe=first, where=_DRIVE + file)
    finetune = ZooEntry(
        name=f"{name}-ft",
        size=size,
        task="finetune",
        data=data,
        recipe=f"{first}; {how}",
        where=_DRIVE + tuned,
        views=_VIEWS[data],
        top1=top1,
        top5=top5,
    )
    return pretrain, finetune


def _hub(name: str, size: str, data: str, epochs: int, *result: float) -> ZooEntry:
    """One of MCG-NJU's repositories on the hub, converted from V1; results as its model card states them."""
    top1, top5 = result or (None, None)
    return ZooEntry(
        name=f"hf-{name}",
        size=size,
        task="finetune" if result else "pretrain",
        data=data,
        recipe=f"tube 0.9, {epochs} epochs" + (", fine-tuned" if result else ""),
        where=f"{_HF}MCG-NJU/videomae-{name}",
        views=_VIEWS[data] if result else "",
        top1=top1,
        top5=top5,
        note="config.json says 16 heads, trained with 6: give num_heads 6" if size == "small" else "",
    )


def _distilled(size: str, letter: str, top1: float, note: str) -> ZooEntry:
    """A row of OpenGVLab/VideoMAEv2's docs/MODEL_ZOO.md, distilled from the giant with K710's labels."""
    return ZooEntry(
        name=f"v2-k710-{size}-distilled",
        size=size,
        task="distilled",
        data="K710",
        recipe="distilled from V2's giant, fine-tuned on K710",
        where=f"{_HF}OpenGVLab/VideoMAE2/distill/vit_{letter}_k710_dl_from_giant.pth",
        views=_VIEWS["K400"],
        top1=top1,
        note=note,
    )


ZOO: tuple[ZooEntry, ...] = (
    *_v1("K400", "small", 1600, "1nU-H1u3eJ-VuyCveU7v-WIOcAVxs5Hww",
         tuned="1ygjLRm1kvs9mwGsP3lLxUExhRo6TWnrx", how="fine-tuned 150 epochs", top1=79.0, top5=93.8),
    *_v1("K400", "base", 800, "1JfrhN144Hdg7we213H1WxwR3lGYOlmIn",
         tuned="18EEgdXY9347yK3Yb28O-GxFMbk41F6Ne", how="fine-tuned, no repeats", top1=80.0, top5=94.4),
    *_v1("K400", "base", 1600, "1tEhLyskjb755TJ65ptsrafUG2llSwQE1",
         tuned="1MzwteHH-1yuMnFb8vRBQDvngV1Zl-d3z", how="fine-tuned 75 epochs", top1=81.5, top5=95.1),
    *_v1("K400", "large", 1600, "1qLOXWb_MGEvaI7tvuAe94CV7S2HXRwT3",
         tuned="1jX1CiqxSkCfc94y8FRW1YGHy-GNvHCuD", how="fine-tuned 35 epochs", top1=85.2, top5=96.8),
    *_v1("K400", "huge", 1600, "1AJQR1Rsi2N1pDn9tLyJ8DQrUREiBA1bO",
         tuned="104ouJZxSVPSAm0LwJXd6IzjdA_RGLqZi", how="fine-tuned 50 epochs", top1=86.6, top5=97.1),
    *_v1("SSv2", "small", 2400, "1p_I1aaONOeUvRmRQw1UT3-L2H8XJClHu",
         tuned="1ajlMrT06jiiM-5YjNI2X_UFyzsuYbbtZ", how="fine-tuned 40 epochs", top1=66.8, top5=90.3),
    *_v1("SSv2", "base", 800, "181hLvyrrPW2IOGA46fkxdJk0tNLIgdB2",
         tuned="1xZCiaPF4w7lYmLt5o1D5tIZyDdLtJAvH", how="fine-tuned, no repeats", top1=69.6, top5=92.0),
    *_v1("SSv2", "base", 2400, "1I18dY_7rSalGL8fPWV82c0-foRUDzJJk",
         tuned="1dt_59tBIyzdZd5Ecr22lTtzs_64MOZkT", how="fine-tuned 30 epochs", top1=70.8, top5=92.4),
    *_v1("UCF101", "base", 3200, "1BHev4meNgKM0o_8DMRbuzAsKSP3IpQ3o",
         tuned="1MSyon6fPpKz7oqD6WDGPFK4k_Rbyb6fw", how="fine-tuned 100 epochs", top1=91.3, top5=98.5),
    _distilled("small", "s", 77.6, "83.7 on K400, 83.1 on K600"),
    _distilled("base", "b", 81.5, "86.6 on K400, 85.9 on K600"),
    _hub("base", "base", "K400", 1600),
    _hub("base-short", "base", "K400", 800),
    _hub("large", "large", "K400", 1600),
    _hub("base-ssv2", "base", "SSv2", 2400),
    _hub("base-short-ssv2", "base", "SSv2", 800),
    _hub("small-finetuned-kinetics", "small", "K400", 1600, 79.0, 93.8),
    _hub("base-finetuned-kinetics", "base", "K400", 1600, 80.9, 94.7),
    _hub("base-short-finetuned-kinetics", "base", "K400", 800, 79.4, 94.1),
    _hub("large-finetuned-kinetics", "large", "K400", 1600, 84.7, 96.5),
    _hub("huge-finetuned-kinetics", "huge", "K400", 1600, 86.6, 97.1),
    _hub("small-finetuned-ssv2", "small", "SSv2", 2400, 66.8, 90.3),
    _hub("base-finetuned-ssv2", "base", "SSv2", 2400, 70.6, 92.6),
    _hub("base-short-finetuned-ssv2", "base", "SSv2", 800, 69.6, 92.0),
)  # fmt: skip


def find(name: str) -> ZooEntry:
    """The entry of that name. InputError names the nearest where there is none."""
    for entry in ZOO:
        if entry.name == name:
            return entry
    names = [e.name for e in ZOO]
    raise InputError(f"no published checkpoint is called {name!r}{nearest(name, names)}; see `vmae zoo list`")


def load_init(
    source: str | os.PathLike[str],
    *,
    frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    patch_size: int | None = None,
    tubelet_size: int | None = None,
    resize_patch_embed: bool = False,
    num_heads: int | None = None,
) -> Loaded:
    """The model of `--init`, adapted to the clip shape asked for: any format, local or from the hub.

    `source`: a path (official file, Hugging Face directory, ours), a zoo name, `hf://org/name[@revision]` or
    `hf://org/name/file.pth`. A path that exists wins over a name. The notes say everything that was assumed
    or changed. Raises InputError for an unknown name, CheckpointError for what cannot be read or fetched
    (with what to download by hand and where to put it).
    """
    from vmae.core.weights.checkpoint import adapt_model
    from vmae.core.weights.convert import read_model
    from vmae.core.weights.models import Loaded

    path = resolve(source)
    loaded = read_model(path, num_heads=num_heads)
    model, notes = adapt_model(
        loaded.model,
        frames=frames,
        height=height,
        width=width,
        patch_size=patch_size,
        tubelet_size=tubelet_size,
        resize_patch_embed=resize_patch_embed,
    )
    return Loaded(model=model, meta=loaded.meta, format=loaded.format, notes=loaded.notes + notes)


def resolve(source: str | os.PathLike[str]) -> Path:
    """A local path for `source` (see `load_init`), fetched into the hub's cache where it is remote."""
    text = os.fspath(source)
    if text.startswith(_HF):
        return fetch(text)
    if Path(text).exists():
        return Path(text)
    if "/" in text or "\\" in text or "." in Path(text).name:
        raise CheckpointError(f"{text}: no such file or directory")
    entry = find(text)
    if not entry.fetchable:
        raise CheckpointError(
            f"{entry.name} is not on the hub: download it by hand from {entry.where} and give the file's path"
        )
    return fetch(entry.where)


def fetch(url: str) -> Path:
    """Download `hf://org/name[@revision][/file]` through huggingface_hub, or find it in its cache.

    Honours HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE. Returns the directory with `config.json` and weights, or
    the one file. Raises CheckpointError that names the files to download by hand where that fails.
    """
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

    parts = url.removeprefix(_HF).split("/")
    if len(parts) < 2 or not all(parts):
        raise InputError(f"expected hf://org/name, got {url!r}")
    name, _, revision = parts[1].partition("@")
    repo, inside = f"{parts[0]}/{name}", "/".join(parts[2:])

    def get(file: str) -> Path:
        return Path(hf_hub_download(repo, file, revision=revision or None))

    try:
        if inside:
            return get(inside)
        folder = get("config.json").parent
        with suppress(EntryNotFoundError):
            get("preprocessor_config.json")
        for weights in ("model.safetensors", "pytorch_model.bin"):
            try:
                get(weights)
                return folder
            except LocalEntryNotFoundError:
                # Offline, the cache cannot tell a missing file from one not yet fetched: try the other.
                if weights == "pytorch_model.bin":
                    raise
            except EntryNotFoundError:
                continue
        raise CheckpointError(f"{url}: expected model.safetensors or pytorch_model.bin in the repository")
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as e:
        page = f"{constants.ENDPOINT}/{repo}"
        wanted = (
            inside or "config.json, preprocessor_config.json and model.safetensors (or pytorch_model.bin)"
        )
        where = "give the file's path" if inside else "put them in one directory and give its path"
        mode = "HF_HUB_OFFLINE is set and the cache lacks it" if constants.HF_HUB_OFFLINE else _reason(e)
        raise CheckpointError(
            f"cannot fetch {url} ({mode}): download {wanted} from {page} by hand, {where}"
        ) from e


def _reason(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0][:160] if text else type(error).__name__
