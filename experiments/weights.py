"""Where weights come from: `--init` and `--checkpoint` take a run's name, a path or a published name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from vmae.core.errors import InputError, nearest
from vmae.core.model.encoder import VideoModel
from vmae.core.model.target import TEACHER, teacher_of
from vmae.core.model.videomae import VideoMAEConfig
from vmae.core.weights.files import WEIGHTS_NAME, read_header
from vmae.core.weights.models import Loaded
from vmae.core.weights.zoo import ZOO, load_init
from vmae.experiments import stages
from vmae.experiments.config import ExperimentConfig
from vmae.experiments.storage import fetched
from vmae.experiments.tracking import Store


def model_source(store: Store, text: str) -> str:
    """A run of this store by its name becomes its model's folder, a URI (`s3://...`) a copy of that folder.

    A classifier's is its best epoch's (it was chosen on the held-out list), where one is kept. A pre-trained
    model's is the last epoch's, as in the papers: its lowest loss chooses nothing worth having. Its best one
    is found by path, RUN/best.
    """
    if "://" in text and not text.startswith(("hf:", "http:", "https:")):
        copy = store.layout.model_copy(text)
        return str(fetched(text, copy))
    home = store.layout.run(text)
    if text and Path(text).name == text and home.config.exists():
        header = read_header(home.best / WEIGHTS_NAME) or {}
        stage = stages.STAGES.get(header.get("meta", {}).get("job", ""))
        return str(home.best if stage is not None and stage.best_counts else home.model)
    return text


def place_of(store: Store, text: str) -> str:
    """Where the weights that a run's name, a path, a URI or a published name stands for lie, as runs record
    it: an absolute path, so that it says the same in another folder; a URI or a published name as it is."""
    if "://" in text:
        return text
    path = Path(model_source(store, text))
    return str(path.resolve()) if path.exists() else text


def load_model_at(store: Store, text: str) -> tuple[VideoModel, dict[str, Any], tuple[str, ...]]:
    """`(model, meta, notes)` of a run's name, a path or a zoo name.

    Raises InputError for an unknown name (the nearest run or zoo entry is named), CheckpointError for a file
    that cannot be read.
    """
    try:
        loaded = load_init(model_source(store, text))
    except InputError as e:
        if "no published checkpoint" not in str(e):
            raise
        hint = nearest(text, [*store.layout.runs(), *(z.name for z in ZOO)])
        raise InputError(
            f"expected a run of {store.runs_dir}, a path, hf://org/name or a name of `vmae zoo list`, "
            f"got '{text}'{hint}"
        ) from e
    return loaded.model, loaded.meta, loaded.notes


def initial_weights(config: ExperimentConfig) -> Loaded:
    """`config.init`'s model at the configuration's clip shape and patches; notes say what was changed.

    Raises InputError for another patch or tubelet size without `config.resize_patch_embed`.
    """
    m = config.model
    return load_init(
        config.init,
        frames=m.frames,
        height=m.height,
        width=m.width,
        patch_size=m.patch_size,
        tubelet_size=m.tubelet_size,
        resize_patch_embed=config.resize_patch_embed,
    )


def clip_of_init(store: Store, init: str) -> tuple[dict[str, Any], str]:
    """What a configuration takes from its initial weights, whatever recipe it is: the clip's shape, patch and
    tubelet, as changes by dotted path; and a line that says so.

    `init`: a run, a folder, an official file, hf://org/name or a name of the zoo; errors as `load_model_at`.
    """
    model, _, _ = load_model_at(store, init)
    c = model.config
    names = ("frames", "height", "width", "patch_size", "tubelet_size", "channels", "background")
    changes: dict[str, Any] = {f"model.{n}": getattr(c, n) for n in names}
    changes |= {"data.frames": c.frames, "data.size": [c.height, c.width], "data.channels": c.channels}
    return changes, (
        f"taken from {init}: clips of {c.frames} frames of {c.height}x{c.width}, patch {c.patch_size}, "
        f"tubelet {c.tubelet_size}" + ("" if c.background == "keep" else f", background {c.background}")
    )


def with_teacher_at(config: ExperimentConfig, store: Store) -> ExperimentConfig:
    """The configuration with the names of its teachers' runs (of latents, of answers) replaced by the
    absolute places of their models.

    Raises InputError for a place where nothing is.
    """

    def found(place: str, key: str, after: str) -> str:
        at = place_of(store, place)
        if "://" not in at and not Path(at).exists():
            hint = nearest(place, store.layout.runs())
            raise InputError(f"{key}: expected a run or a path{after}, got '{place}'{hint}")
        return at

    place, distill = teacher_of(config.model.target), config.finetune.distill
    if place is not None:
        target = TEACHER + found(place, "model.target", f" after {TEACHER}")
        config = replace(config, model=replace(config.model, target=target))
    if distill.teacher:
        at = found(distill.teacher, "finetune.distill.teacher", "")
        config = replace(config, finetune=replace(config.finetune, distill=replace(distill, teacher=at)))
    return config


def with_init(
    config: ExperimentConfig, store: Store
) -> tuple[ExperimentConfig, VideoModel | None, tuple[str, ...]]:
    """The configuration with its model section as `config.init` has it, the weights, and notes on them.

    The widths are the checkpoint's; the clip's shape and the patches stay the configuration's (positions are
    interpolated where the shape is another one; for patches see `initial_weights`). A run's name in `init`
    becomes the path of its model.
    """
    if not config.init:
        return config, None, ()
    config = replace(config, init=model_source(store, config.init))
    loaded = initial_weights(config)
    c = loaded.model.config
    kept = ["embed_dim", "depth", "num_heads", "mlp_ratio", "patch_size", "tubelet_size", "pos_grid"]
    kept += ["mean", "std", "norm_eps", "head_norm_eps", "channels", "background"]
    decoder = ["decoder_embed_dim", "decoder_depth", "decoder_num_heads"]
    if teacher_of(config.model.target) is None:  # a teacher is asked for, whatever the weights once predicted
        decoder += ["target", "loss"]
    kept += [name for name in decoder if hasattr(c, name)]
    shape = {name: getattr(c, name) for name in kept}
    return replace(config, model=replace(config.model, **shape)), loaded.model, loaded.notes


def config_of_model(model: VideoModel, meta: dict[str, Any]) -> ExperimentConfig:
    """A configuration with the clip shape of a model and, where it carries it, how it sampled frames."""
    base = ExperimentConfig()
    c = model.config
    kept = ("sampling_rate", "sampling", "fps")
    sampling = {k: v for k, v in meta.get("sampling", {}).items() if k in kept}
    clip: dict[str, Any] = {"frames": c.frames, "size": (c.height, c.width), "channels": c.channels}
    data = replace(base.data, short_side=c.height, **clip, **sampling)
    shape = {"frames": c.frames, "height": c.height, "width": c.width, "channels": c.channels}
    return replace(
        base,
        name="model",
        data=data,
        model=VideoMAEConfig.from_size(
            "tiny", patch_size=c.patch_size, tubelet_size=c.tubelet_size, mean=c.mean, std=c.std, **shape
        ),
    )
