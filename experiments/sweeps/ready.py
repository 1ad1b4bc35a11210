"""What a sweep needs before its trials start: whatever would fail or wait for ever is refused here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from vmae.core.errors import InputError
from vmae.experiments import stages
from vmae.experiments.cluster import files_to_see, probe_address, require_fit
from vmae.experiments.sweeps.spec import Plan
from vmae.experiments.tracking import Store, create_store

if TYPE_CHECKING:
    from vmae.core.video.samples import Sample


def check_place(plan: Plan) -> None:
    """Refuse at once what would fail or wait for ever: before Ray starts and the sweep has a folder.

    Raises:
        InputError: a stage that asks for more GPUs than this machine has.
        VmaeError: nothing answers at the address.
    """
    if plan.resources.address is not None:
        probe_address(plan.resources.address)
        return
    import torch

    there = torch.cuda.device_count()
    for stage in map(plan.resources.of, plan.stages()):
        if stage.gpus * stage.workers > there:
            raise InputError(
                f"expected {stage.workers * stage.gpus:g} GPUs for {stage.stage}, got {there} here "
                "(--gpus, --workers-per-trial, --stage-resources)"
            )


def prepare(plan: Plan, store: Store, progress: Callable[[int, int], None] | None = None) -> None:
    """What trials share, done once before they start: the store, and every video decoded into the cache.

    Raises:
        InputError, VideoError: bad lists, held-out videos or a share of the list that does not fill a batch
            are refused here, before anything is started.
    """
    from vmae.core.video.samples import require_labels, subset
    from vmae.experiments.data import open_data, read_list, require_held_out

    if store.sqlite_path is None:
        create_store(store)  # a server that does not answer is said before anything is decoded
    data = plan.base.data
    if plan.folds:
        data = replace(data, val_csv=data.train_csv, test_csv="")  # each of its videos is held out once
        require_labels(read_list(data, data.train_csv), data.train_csv)
    elif not data.val_csv and stages.need_held_out(plan.base.pipeline.then):
        raise InputError("data.val_csv: expected a held-out list (--val FILE) to rank trials by, got none")
    opened = open_data(data, plan.base.train.seed, store.layout.cache, progress)
    read = [(opened.train_plain.samples, data.train_csv)]
    read += [] if opened.val is None else [(opened.val.samples, data.val_csv)]
    for stage in plan.stages():
        stage.ready(stage.settings(plan.base))
        for samples, name in read:
            stage.check_list(plan.base, samples, name)
    if opened.val is not None:
        require_held_out(data, plan.base.train.seed, progress)
    lists: dict[str, list[Sample]] = {}
    for stage in plan.stages():
        for config in [t.config(plan.base) for t in plan.trials if stage.trains and not t.baseline]:
            work = stage.settings(config)
            share, batch = work.data.train_share, work.train.batch_size
            if work.data.train_csv not in lists:
                lists[work.data.train_csv] = read_list(work.data, work.data.train_csv)
            listed = lists[work.data.train_csv]
            kept = len(subset(listed, share, work.train.seed))
            if kept < batch:
                field = "data.train_share" if stage.masked else "pipeline.finetune_share"
                left = f"{field} = {share:g} of {len(listed)} videos leaves {kept}"
                whole = f"the training list has {kept}"
                raise InputError(
                    f"expected at least one batch of {stage.section}.batch_size = {batch} clips; "
                    f"{left if share < 1 else whole}"
                )
    if plan.search == "optuna":
        from vmae.experiments.sweeps.search import check_optuna

        check_optuna()
    if store.sqlite_path is not None and not store.sqlite_path.exists():
        create_store(store)  # one that is there can wait for its first run


def check_nodes(plan: Plan, store: Store) -> None:
    """Raise ClusterUnfit where a node could not run a trial of the plan."""
    data = plan.base.data
    reports = require_fit(
        paths=files_to_see(data, data.train_csv, data.val_csv, *data.more_lists),
        storage=store.remote or str(store.runs_dir),
        gpus_wanted=max(plan.resources.of(stage).gpus for stage in plan.stages()),
    )
    hosts = {r.host for r in reports}
    if len(hosts) > 1 and store.sqlite_path is not None:
        raise InputError(
            f"expected a tracking server for trials on {len(hosts)} machines (MLFLOW_TRACKING_URI), got "
            f"{store.uri}: SQLite on shared storage loses writes"
        )
