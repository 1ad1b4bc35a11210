"""Nothing between two steps waits for the device, numbers are read a step late, odd batches stay eager."""

from __future__ import annotations

import math
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from vmae.core.model.masking import MaskConfig
from vmae.core.train.finetune import FinetuneConfig, Finetuning
from vmae.core.train.loop import Trainer
from vmae.core.train.optim import OptimConfig
from vmae.core.train.pretrain import Pretraining
from vmae.core.train.step import Gradients, Late, update
from vmae.core.train.task import Task, silent

sys.path.insert(0, str(Path(__file__).parent))
import test_loop as loop
from test_finetune import classifier

sys.path.pop(0)

WAITING = {"_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select", "unique_dim", "_unique2"}
"""Operators whose result the host needs before it can go on: on a GPU it waits for all that is queued."""
READING = ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__")
"""Methods of a tensor that give the host its values."""


class HostWaits(TorchDispatchMode):
    """Counts what would make the host wait for a device, in the thread that trains, while it is `on`.

    Tensors here are on the CPU, where no wait is one; the operators and methods are the same.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.on, self.found = False, list[str]()
        self._thread = threading.get_ident()
        for name in READING:
            monkeypatch.setattr(Tensor, name, self._watched(name, getattr(Tensor, name)))

    def _watched(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            self._note(name)
            return method(tensor, *args, **kwargs)

        return call

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name in WAITING:
            self._note(name)
        if name in ("_to_copy", "copy_") and not kwargs.get("non_blocking", False):
            source, target = (args[1], args[0]) if name == "copy_" else (args[0], args[0])
            if source.device != kwargs.get("device", target.device):
                self._note(name)
        if name in ("index", "index_put_") and any(
            i is not None and i.dtype == torch.bool for i in args[1] if isinstance(args[1], list | tuple)
        ):
            self._note("nonzero")
        if name in ("lift_fresh", "lift_fresh_copy"):
            self._note("torch.tensor(values)")  # on a GPU: a copy from pageable memory
        return func(*args, **kwargs)

    def _note(self, name: str) -> None:
        if not self.on or threading.get_ident() != self._thread:
            return
        files = [f.filename for f in traceback.extract_stack() if "/tests/" not in f.filename]
        ours = [Path(f).name for f in files if "/vmae/core/" in f or "/vmae/kernels/" in f]
        # What the kernels do with tensors on the CPU only.
        if not {"checks.py", "cpu.py"} & set(ours):
            self.found.append(f"{name} in {ours[-1]}" if ours else name)


def trainer(folder: Path, run_dir: Path, *, finetunes: bool = False, **train: Any) -> Trainer:
    settings = replace(loop.TRAIN, **{"epochs": 2, "log_every": 1, **train})
    optim = OptimConfig(base_lr=0.1, warmup_epochs=1, clip_grad=0.5)
    dataset = loop.dataset(folder, replace(loop.DATA, repeats=2))
    common: dict[str, Any] = {"optim": optim, "train": settings}
    model: Any
    task: Task
    if finetunes:
        model = classifier(drop_path=0.2)
        config = FinetuneConfig(drop_path=0.2)
        task = Finetuning(
            model=model, config=config, val=None, device=torch.device("cpu"), labels=None, **common
        )
    else:
        model = loop.model()
        mask = MaskConfig(ratio=0.75, decoder_type="running_cell")
        task = Pretraining(model=model, mask=mask, report=silent, more=None, measured=(), **common)
    return Trainer(task, model, dataset, run_dir=run_dir, **common)


@pytest.mark.parametrize(
    "train",
    [
        {},
        {"accumulate": 2, "ema_decay": 0.9},
        {"precision": "bf16"},
        {"precision": "fp16"},
        {"finetunes": True, "accumulate": 3},
    ],
    ids=["plain", "accumulate+ema", "bf16", "fp16", "fine-tuning"],
)
def test_a_step_waits_for_nothing_but_the_numbers_of_the_one_before(
    tiny_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train: dict[str, Any]
) -> None:
    made = trainer(tiny_videos, tmp_path, **train)
    made.begin(resume=False)
    read: list[tuple[int, int]] = []
    inner = made._settle

    def settle() -> None:
        pending = made.pending
        if pending is not None:
            read.append((pending.number, made.at.step))
        inner()

    monkeypatch.setattr(made, "_settle", settle)
    batches = iter(made.loader)
    made.step(batches)  # the first makes what is constant
    with HostWaits(monkeypatch) as waits:
        for _ in range(1, made.steps_per_epoch):
            waits.on = True
            made.step(batches)
            waits.on = False
    assert waits.found == ["tolist in step.py"] * (made.steps_per_epoch - 1)
    # In step 2 the numbers of step 1, and so on; the last ones are still to be read.
    assert read == [(n, n) for n in range(1, made.steps_per_epoch)]
    assert made.pending is not None and made.pending.number == made.steps_per_epoch


def test_the_hook_sees_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.ones(3)
    made: dict[str, Callable[[], Any]] = {
        "__float__": lambda: float(x.sum()),
        "item": lambda: x.sum().item(),
        "__bool__": lambda: bool(x.any()),
        "tolist": lambda: x.tolist(),  # noqa: PLW0108 (the method that is watched)
        "nonzero": lambda: x[x > 0],
        "cpu": lambda: x.cpu(),  # noqa: PLW0108
        "torch.tensor(values)": lambda: torch.tensor([1.0, 2.0]),
        "_to_copy": lambda: x.to("meta"),
    }
    for name, make in made.items():
        with HostWaits(monkeypatch) as waits:
            waits.on = True
            make()
            waits.on = False
        assert name in waits.found, (name, waits.found)


def test_masks_are_drawn_in_the_loaders_thread(
    tiny_videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trainer(tiny_videos, tmp_path)
    threads: set[str] = set()
    ahead = made.task.ahead

    def watched(*args: Any) -> dict[str, Any]:
        threads.add(threading.current_thread().name)
        return ahead(*args)

    monkeypatch.setattr(made.task, "ahead", watched)
    made.run(resume=False)
    assert threads == {"vmae-read-ahead"}


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, 2.0]))


@pytest.mark.parametrize("bad", [0.0, 1.0])
def test_the_optimiser_is_told_on_the_device_what_to_skip(bad: float) -> None:
    from vmae.core.train.optim import build_optimizer, set_lr

    for name in ("adamw", "sgd"):
        model = Twice()
        optimizer = build_optimizer(model, OptimConfig(optimizer=name, weight_decay=0.1))
        set_lr(optimizer, 0.1)
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        before = model.weight.detach().clone()
        for _ in range(2):
            model.weight.grad = torch.tensor([float("nan"), 1.0]) if bad else torch.tensor([0.5, 1.0])
            update(optimizer, scaler, bad=torch.tensor(bad), skips=name == "adamw")
        assert torch.equal(before, model.weight) == bool(bad), name
        assert torch.isfinite(model.weight).all()
        if name == "adamw":
            assert optimizer.state[model.weight]["step"].item() == (0 if bad else 2)


def gradients(model: nn.Module, calls: list[int], rows: int = 4) -> Gradients:
    def loss(module: nn.Module, x: Tensor) -> Tensor:
        calls.append(len(x))
        return module(x).square().mean()

    return Gradients(
        loss,
        model,
        model,
        rows=rows,
        share=1.0,
        precision="fp32",
        device=torch.device("cpu"),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        quiet=threading.Lock(),
    )


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Layer()])

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def test_only_whole_batches_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[tuple[int, ...]] = []

    def backend(graph: Any, example: Any) -> Any:
        compiled.append(tuple(example[-1].shape))
        return graph.forward

    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: real(f, backend=backend, **options))
    torch._dynamo.reset()
    model = Stack()
    made = gradients(model, [])
    made.set_mode("compile")
    plain = Stack()
    plain.load_state_dict(model.state_dict())
    for rows in (4, 3, 4, 1, 2, 4):
        x = torch.randn(rows, 3)
        made.clear()
        loss = made(x)
        own = model.blocks[0].weight.grad
        plain.zero_grad()
        expected = plain(x).square().mean()
        expected.backward()
        assert loss == pytest.approx(expected.item()) and own is not None
        torch.testing.assert_close(own, plain.blocks[0].weight.grad)
    assert len(compiled) == 1
    with made.eager():
        model(torch.randn(7, 3))
    assert len(compiled) == 1
    torch._dynamo.reset()


def test_numbers_are_read_when_asked() -> None:
    values = torch.tensor([1.5, float("nan")])
    late = Late(values)
    first, second = late.read()
    assert first == 1.5 and math.isnan(second)


@pytest.fixture
def one_bad(tiny_videos: Path, tmp_path: Path) -> Iterator[Path]:
    import shutil

    for path in tiny_videos.iterdir():
        shutil.copy(path, tmp_path)
    (tmp_path / "03.mp4").write_bytes(b"not a video")
    yield tmp_path


@pytest.mark.slow
def test_a_compiled_run_meets_a_smaller_batch_without_compiling_again(one_bad: Path) -> None:
    data = replace(loop.DATA, max_bad_share=0.2)
    plain = loop.Run(one_bad, one_bad / "plain", dataset=loop.dataset(one_bad, data))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    made = loop.Run(
        one_bad,
        one_bad / "compiled",
        dataset=loop.dataset(one_bad, data),
        train=replace(loop.TRAIN, compile=True),
    )
    for step, loss in plain.losses.items():
        assert made.losses[step] == pytest.approx(loss, abs=1e-4), step
    # Encoder, decoder's last block: one graph each.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 3
