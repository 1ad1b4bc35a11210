"""One held-out clip of the built-in set as every setting reconstructs it, a row a setting."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from vmae.core.files import read_record
from vmae.core.video.demo_data import MANIFEST
from vmae.experiments.layout import SweepDir
from vmae.experiments.results import questions
from vmae.experiments.stages import pretrain
from vmae.experiments.sweeps.spec import Plan, Trial

_COLUMNS = 8
_HEIGHT = 72
"""Pixels of a frame, about."""
_FORM = "model_only"
"""Nothing of the hidden pixels is used."""


def strip(sweep: SweepDir, plan: Plan, path: Path) -> Path | None:
    """Write the picture; None where the held-out clips are not the built-in set's, or nothing is
    reconstructed: no frame of anybody's videos leaves the machine.

    The first seed's models, the same tube mask at the common evaluation ratio for all of them.
    """
    import torch

    from vmae.core.measure.films import contact_sheet
    from vmae.core.measure.reconstruct import reconstruct, to_rgb
    from vmae.core.model.masking import sample_mask
    from vmae.core.model.videomae import VideoMAE
    from vmae.core.numerics import clip_to_video, make_generator
    from vmae.core.weights.checkpoint import load_model
    from vmae.experiments.data import open_data

    if not plan.base.data.val_csv:
        return None
    question, _ = questions.of_sweep(plan.name) or (None, None)
    data = replace(plan.base.data, cache=False)
    val = open_data(data, plan.base.train.seed, sweep.runs.cache).val
    assert val is not None
    if not _built_in(val.samples[0].path, Path(plan.base.data.val_csv)):
        return None
    clip = torch.as_tensor(val[0]["clip"])[None]
    rows: list[tuple[str, np.ndarray]] = []
    field = plan.params[0].rpartition(".")[2].replace("_", " ")
    for trial in _first_seed(plan):
        place = sweep.trial(trial.id).stage(pretrain.STAGE.name).model
        model = load_model(place)[0] if place.exists() else None
        if not isinstance(model, VideoMAE) or not model.config.predicts_pixels:
            continue
        mask = sample_mask(
            "tube", plan.base.evaluation_ratio, model.config.grid, 1, make_generator(0, "strip")
        )
        model.eval()
        with torch.no_grad():
            made = reconstruct(model, clip_to_video(clip, torch.device("cpu")), mask)
        if not rows:
            rows = [
                ("original", to_rgb(made.original[0])),
                ("what the encoder sees", to_rgb(made.masked_input[0])),
            ]
        label = f"{field} {question.called(trial.overrides)}" if question else trial.id
        rows.append((label, to_rgb(getattr(made, _FORM)[0])))
    if not rows:
        return None
    scale = max(1, round(_HEIGHT / rows[0][1].shape[1]))
    contact_sheet(rows, max_columns=_COLUMNS, scale=scale).save(path, "PNG", optimize=True)
    return path


def _built_in(path: str, listed: Path) -> bool:
    """Whether a file is one that `vmae data demo` wrote beside the list: by its name and size."""
    made = read_record(listed.parent / MANIFEST, "bytes")
    name = os.path.relpath(path, listed.parent)
    return made is not None and made["bytes"].get(name) == os.path.getsize(path)


def _first_seed(plan: Plan) -> list[Trial]:
    return [setting[0] for setting in plan.settings()]
