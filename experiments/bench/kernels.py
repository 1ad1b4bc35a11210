"""Timing of the ops side by side: checked first, interleaved, beside the GPU's own ceilings.

Every variant of an op is compared with the float64 reference on a few clips of the inputs that are timed;
a variant whose output is wrong is listed with its error and not timed. On a GPU each variant is captured into
a CUDA graph over several input sets (so that neither launches nor the cache are measured); the variants take
turns and medians are kept with their spread. On a CPU (dry run) the same code runs with a host clock.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vmae import kernels
from vmae.kernels import reference

TOLERANCE = 2e-2  # ||out - ref|| / ||ref|| of bfloat16 results; a wrong kernel is far above it


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to compute an op: `run(inputs)` returns the tensors that are checked (outputs, gradients)."""

    name: str
    run: Callable[[dict[str, Tensor]], tuple[Tensor, ...]]


@dataclass(frozen=True, kw_only=True)
class OpBench:
    """One op at one shape. `exact(inputs)` is the float64 result, for `checked_clips`.

    flops and bytes: what the op must at least compute and move, per call.
    """

    op: str
    shape: dict[str, int]
    what: str  # "fwd" or "fwd+bwd"
    make: Callable[[int], dict[str, Tensor]]
    exact: Callable[[dict[str, Tensor]], tuple[Tensor, ...]]
    variants: list[Variant]
    flops: float
    bytes: float


@dataclass(kw_only=True)
class Timing:
    """Milliseconds per call of one variant: median of the rounds and the quartiles; error against float64."""

    name: str
    ms: float | None = None
    ms_q1: float | None = None
    ms_q3: float | None = None
    error: float | None = None
    refused: str | None = None


@dataclass(kw_only=True)
class OpResult:
    op: str
    shape: dict[str, int]
    what: str
    flops: float
    bytes: float
    timings: list[Timing] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def relative_error(out: Tensor, ref: Tensor) -> float:
    """`||out - ref|| / ||ref||` in float64; NaN counts as infinite."""
    out, ref = out.detach().double(), ref.detach().double()
    value = float((out - ref).norm() / ref.norm().clamp_min(1e-30))
    return value if math.isfinite(value) else float("inf")


def check(bench: OpBench, variant: Variant, inputs: dict[str, Tensor]) -> float:
    """Return the largest relative error of a variant's results on the clips the reference covers."""
    results, exact = variant.run(inputs), bench.exact(inputs)
    worst = 0.0
    for out, ref in zip(results, exact, strict=True):
        part = out if out.shape == ref.shape else checked_clips(out)
        worst = max(worst, relative_error(part, ref))
    return worst


def checked_clips(x: Tensor) -> Tensor:
    """The clips that are compared: the first and the last two, where an index past 2**31 would show."""
    return x if x.shape[0] <= 4 else torch.cat([x[:2], x[-2:]])


class Clock:
    """Times a callable: CUDA-graph replays between events on a GPU, a host clock elsewhere."""

    def __init__(self, run: Callable[[], Any], calls: int, device: str) -> None:
        self.calls, self.device, self.run = calls, device, run
        self.graphed = False
        if device == "cuda":
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(3):
                    run()
            torch.cuda.current_stream().wait_stream(stream)
            torch.cuda.synchronize()
            try:
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    run()
                self.run, self.graphed = graph.replay, True
            except RuntimeError:  # a variant that waits for the host (boolean indexing) is timed as it is
                torch.cuda.synchronize()

    def measure(self, min_ms: float) -> float:
        """Milliseconds per call, over at least `min_ms` of work."""
        repeats, elapsed = 1, 0.0
        while True:
            elapsed = self._elapsed(repeats)
            if elapsed >= min_ms or repeats >= 1 << 14:
                return elapsed / (repeats * self.calls)
            repeats = min(1 << 14, max(repeats * 2, int(repeats * min_ms / max(elapsed, 1e-3))))

    def _elapsed(self, repeats: int) -> float:
        if self.device == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(repeats):
                self.run()
            end.record()
            end.synchronize()
            return start.elapsed_time(end)
        begin = time.perf_counter()
        for _ in range(repeats):
            self.run()
        return (time.perf_counter() - begin) * 1e3


def run_bench(
    bench: OpBench,
    device: str,
    *,
    sets: int = 3,
    rounds: int = 7,
    min_ms: float = 20.0,
    skip: Mapping[str, str] | None = None,
    announce: Callable[[str], None] = lambda name: None,
) -> OpResult:
    """Check, then time all variants in turns; return medians and quartiles in milliseconds per call.

    rounds: 0 only checks (and compiles). skip: variants that are not run, and why. announce is told the
    variant's name before anything of it runs, so that whoever watches knows what hung.
    """
    inputs = [bench.make(seed) for seed in range(sets)]
    result = OpResult(op=bench.op, shape=bench.shape, what=bench.what, flops=bench.flops, bytes=bench.bytes)
    clocks: list[tuple[Timing, Clock]] = []
    for variant in bench.variants:
        timing = Timing(name=variant.name)
        result.timings.append(timing)
        if skip and variant.name in skip:
            timing.refused = skip[variant.name]
            continue
        announce(variant.name)
        try:
            timing.error = check(bench, variant, inputs[0])
            if timing.error > TOLERANCE:
                timing.refused = f"wrong output: relative error {timing.error:.2e}"
                continue

            def once(variant: Variant = variant) -> None:
                for item in inputs:
                    variant.run(item)

            if rounds:
                clocks.append((timing, Clock(once, sets, device)))
        except Exception as e:  # a backend that does not take this shape; said in the table, not hidden
            timing.refused = f"{type(e).__name__}: {(str(e).splitlines() or [''])[0][:160]}"
            if device == "cuda":
                torch.cuda.synchronize()  # raises where the GPU is lost to this process: the worker ends
                torch.cuda.empty_cache()
    samples: dict[str, list[float]] = {t.name: [] for t, _ in clocks}
    for _ in range(rounds):
        for timing, clock in clocks:
            announce(timing.name)
            samples[timing.name].append(clock.measure(min_ms / rounds))
    for timing, clock in clocks:
        values = samples[timing.name]
        timing.ms = statistics.median(values)
        timing.ms_q1, _, timing.ms_q3 = (
            statistics.quantiles(values, n=4) if len(values) > 1 else [timing.ms] * 3
        )
        if device == "cuda" and not clock.graphed:
            timing.refused = "timed without a CUDA graph (it waits for the host)"
    return result


def measure_ceilings(device: str, *, scale: int) -> dict[str, float]:
    """Return this machine's copy bandwidth (bytes/s, read + written) and bf16 matrix rate (FLOP/s)."""
    n = (1 << 30) // scale
    pair = [torch.randint(0, 255, (n,), dtype=torch.uint8, device=device) for _ in range(2)]
    copy_ms = _median_ms(lambda: pair[0].copy_(pair[1]), device)
    pair.clear()
    side = max(64, 8192 // scale)
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    matmul_ms = _median_ms(lambda: a @ b, device)
    return {
        "copy_bytes_per_s": 2 * n / (copy_ms * 1e-3),
        "bf16_flop_per_s": 2 * side**3 / (matmul_ms * 1e-3),
    }


def _median_ms(run: Callable[[], Any], device: str) -> float:
    clock = Clock(run, 1, device)
    return statistics.median(clock.measure(20.0 if device == "cuda" else 1.0) for _ in range(5))


# --- attention --------------------------------------------------------------------------------------------


def _sdpa(qkv: Tensor, backends: list[SDPBackend] | None) -> Tensor:
    """SDPA from packed and back: what a model calls around it. Its backward packs dq, dk, dv."""
    b, n, _, h, d = qkv.shape
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    if backends is None:
        out = F.scaled_dot_product_attention(q, k, v)
    else:
        with sdpa_kernel(backends):
            out = F.scaled_dot_product_attention(q, k, v)
    return out.transpose(1, 2).reshape(b, n, h * d)


def attention_bench(
    b: int, n: int, h: int, d: int, *, backward: bool, device: str, compiled: bool
) -> OpBench:
    """`fused_attention` against every SDPA backend, packing included."""

    def make(seed: int) -> dict[str, Tensor]:
        gen = torch.Generator(device).manual_seed(seed)
        qkv = torch.randn(b, n, 3, h, d, generator=gen, device=device, dtype=torch.bfloat16)
        dout = torch.randn(b, n, h * d, generator=gen, device=device, dtype=torch.bfloat16)
        return {"qkv": qkv.requires_grad_(backward), "dout": dout}

    def through(attend: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], tuple[Tensor, ...]]:
        def run(x: dict[str, Tensor]) -> tuple[Tensor, ...]:
            out = attend(x["qkv"])
            return (out, *torch.autograd.grad(out, x["qkv"], x["dout"])) if backward else (out,)

        return run

    def exact(x: dict[str, Tensor]) -> tuple[Tensor, ...]:
        qkv = checked_clips(x["qkv"].detach()).double().requires_grad_(backward)
        out = reference.fused_attention(qkv)
        if not backward:
            return (out,)
        return out.detach(), *torch.autograd.grad(out, qkv, checked_clips(x["dout"]).double())

    backends: list[tuple[str, list[SDPBackend] | None]] = [("sdpa default", None)]
    if device == "cuda":
        backends += [
            ("sdpa flash", [SDPBackend.FLASH_ATTENTION]),
            ("sdpa cudnn", [SDPBackend.CUDNN_ATTENTION]),
            ("sdpa efficient", [SDPBackend.EFFICIENT_ATTENTION]),
        ]
    variants = [Variant(name="ours", run=through(_in_mode("triton", kernels.fused_attention)))]
    if n <= 256:
        variants.append(Variant(name="ours, long kernels", run=through(_long_attention)))
    variants += [
        Variant(name=name, run=through(lambda qkv, which=which: _sdpa(qkv, which)))  # type: ignore[misc]
        for name, which in backends
    ]
    if n <= 512:
        variants.append(Variant(name="eager", run=through(reference.fused_attention)))
    if compiled:
        variants.append(Variant(name="compiled eager", run=through(torch.compile(reference.fused_attention))))
    unit = b * n * h * d * 2  # bytes of one of q, k, v, out in bfloat16
    return OpBench(
        op="fused_attention",
        shape={"B": b, "N": n, "H": h, "D": d},
        what="fwd+bwd" if backward else "fwd",
        make=make,
        exact=exact,
        variants=variants,
        # 2 products forward, 5 backward; bytes: qkv + out, then qkv + out + dout + dqkv
        flops=4.0 * b * h * n * n * d * (3.5 if backward else 1.0),
        bytes=unit * (12.0 if backward else 4.0),
    )


def _long_attention(qkv: Tensor) -> Tensor:
    """The long-sequence kernels at a short length: the alternative that dispatch may find better."""
    from dataclasses import replace

    from vmae.kernels.attention import library

    plan = replace(library._plan(qkv), short_fwd=None, short_bwd=None)
    scale = qkv.shape[4] ** -0.5

    class Long(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, qkv: Tensor) -> Tensor:
            out, lse = library.launch_fwd(qkv, scale, None, plan)
            ctx.save_for_backward(qkv, out, lse)
            return out

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tensor:
            qkv, out, lse = ctx.saved_tensors
            return library.launch_bwd(grads[0], qkv, out, lse, scale, None, plan=plan)

    out: Tensor = Long.apply(qkv)
    return out


def _in_mode(mode: str, op: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with kernels.use_kernels(mode):
            return op(*args, **kwargs)

    return run


# --- patches ----------------------------------------------------------------------------------------------

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class ClipShape:
    """A clip batch and its mask: 16 x 224 x 224 at patch 16 and tube masking unless said."""

    b: int
    frames: int = 16
    side: int = 224
    patch: int = 16
    tubelet: int = 2
    masked: float = 0.9

    @property
    def tokens(self) -> int:
        return (self.frames // self.tubelet) * (self.side // self.patch) ** 2

    @property
    def num_masked(self) -> int:
        slots = (self.side // self.patch) ** 2
        return int(self.masked * slots) * (self.frames // self.tubelet)

    @property
    def values(self) -> int:
        return self.tubelet * self.patch**2 * 3

    def make_clip(self, seed: int, device: str) -> dict[str, Tensor]:
        gen = torch.Generator(device).manual_seed(seed)
        size = (self.b, self.frames, self.side, self.side, 3)
        video = torch.randint(0, 256, size, generator=gen, device=device, dtype=torch.uint8)
        order = torch.rand(self.b, self.tokens, generator=gen, device=device).argsort(dim=1)
        visible = order[:, self.num_masked :].sort(dim=1).values
        return {
            "video": video.permute(0, 4, 1, 2, 3),  # [B, C, T, H, W] over channels-last memory
            "visible": visible,
            "masked": order[:, : self.num_masked].sort(dim=1).values,
        }


def gather_bench(shape: ClipShape, width: int, *, device: str, compiled: bool) -> OpBench:
    """The masked-token gather, against the official embedding of all tokens (normalise, Conv3d, index)."""
    grid = {"patch_size": shape.patch, "tubelet_size": shape.tubelet}
    args: dict[str, Any] = {**grid, "mean": MEAN, "std": STD, "dtype": torch.bfloat16}
    gen = torch.Generator(device).manual_seed(99)
    weight = torch.randn(width, shape.values, generator=gen, device=device) / shape.values**0.5
    linear = weight.to(torch.bfloat16)
    conv = linear.view(width, shape.tubelet, shape.patch, shape.patch, 3).permute(0, 4, 1, 2, 3).contiguous()
    stride = (shape.tubelet, shape.patch, shape.patch)
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1, 1) for v in (MEAN, STD))

    def official(x: dict[str, Tensor]) -> tuple[Tensor, ...]:
        clip = ((x["video"].float() / 255 - mean) / std).to(torch.bfloat16)
        tokens = F.conv3d(clip, conv, stride=stride).flatten(2).transpose(1, 2)  # [B, N, D]
        return (tokens.gather(1, x["visible"][..., None].expand(-1, -1, width)),)

    def exact(x: dict[str, Tensor]) -> tuple[Tensor, ...]:
        clip = {k: checked_clips(v) for k, v in x.items()}
        patches = reference.gather_patches(clip["video"], clip["visible"], **{**args, "dtype": torch.float64})
        return (patches @ linear.double().T,)

    def embed(mode: str) -> Callable[[dict[str, Tensor]], tuple[Tensor, ...]]:
        gather = _in_mode(mode, kernels.gather_patches)
        return lambda x: (F.linear(gather(x["video"], x["visible"], **args), linear),)

    variants = [
        Variant(name="ours + linear", run=embed("triton")),
        Variant(name="torch path + linear", run=embed("torch")),
        Variant(name="official: normalise, conv3d, index", run=official),
    ]
    if compiled:
        variants.append(Variant(name="compiled official", run=torch.compile(official)))
    visible = shape.b * (shape.tokens - shape.num_masked)
    return OpBench(
        op="patch_embedding",
        shape=_shape_of(shape) | {"D": width},
        what="fwd",
        make=lambda seed: shape.make_clip(seed, device),
        exact=exact,
        variants=variants,
        flops=2.0 * visible * shape.values * width,
        bytes=visible * (shape.values + 2.0 * shape.values + 2.0 * width),
    )


def gather_only_bench(shape: ClipShape, *, device: str, compiled: bool) -> OpBench:
    """The gather alone: uint8 read once, bfloat16 written once."""
    args: dict[str, Any] = {"patch_size": shape.patch, "tubelet_size": shape.tubelet}
    args |= {"mean": MEAN, "std": STD, "dtype": torch.bfloat16}

    def exact(x: dict[str, Tensor]) -> tuple[Tensor, ...]:
        clip = {k: checked_clips(v) for k, v in x.items()}
        return (reference.gather_patches(clip["video"], clip["visible"], **{**args, "dtype": torch.float64}),)

    def run(gather: Callable[..., Tensor]) -> Callable[[dict[str, Tensor]], tuple[Tensor, ...]]:
        return lambda x: (gather(x["video"], x["visible"], **args),)

    torch_path = _in_mode("torch", kernels.gather_patches)
    variants = [
        Variant(name="ours", run=run(_in_mode("triton", kernels.gather_patches))),
        Variant(name="torch path", run=run(torch_path)),
    ]
    if compiled:
        variants.append(Variant(name="compiled torch path", run=run(torch.compile(torch_path))))
    moved = shape.b * (shape.tokens - shape.num_masked) * shape.values
    return OpBench(
        op="gather_patches",
        shape=_shape_of(shape),
        what="fwd",
        make=lambda seed: shape.make_clip(seed, device),
        exact=exact,
        variants=variants,
        flops=2.0 * moved,
        bytes=3.0 * moved,
    )


def _shape_of(shape: ClipShape) -> dict[str, int]:
    return {"B": shape.b, "N": shape.tokens, "K": shape.tokens - shape.num_masked, "P": shape.values}


def loss_bench(shape: ClipShape, *, device: str, compiled: bool) -> OpBench:
    """Loss and gradient of the masked patches, against the official labels-then-MSE."""
    grid: dict[str, Any] = {"patch_size": shape.patch, "tubelet_size": shape.tubelet}
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1, 1) for v in (MEAN, STD))

    def make(seed: int) -> dict[str, Tensor]:
        x = shape.make_clip(seed, device)
        gen = torch.Generator(device).manual_seed(seed + 1000)
        size = (shape.b, shape.num_masked, shape.values)
        pred = torch.randn(size, generator=gen, device=device, dtype=torch.bfloat16)
        # The official loop receives the normalised clip and un-normalises it for the target.
        clip = (x["video"].float() / 255 - mean) / std
        return x | {"pred": pred.requires_grad_(), "clip": clip}

    def official(pred: Tensor, clip: Tensor, masked: Tensor) -> Tensor:
        p, t = shape.patch, shape.tubelet
        pixels = clip * std + mean
        b, c = pixels.shape[:2]
        cut = pixels.view(b, c, shape.frames // t, t, shape.side // p, p, shape.side // p, p)
        patches = cut.permute(0, 2, 4, 6, 3, 5, 7, 1).reshape(b, -1, t * p * p, c)
        spread = patches.var(dim=-2, unbiased=True, keepdim=True).sqrt() + 1e-6
        labels = ((patches - patches.mean(dim=-2, keepdim=True)) / spread).flatten(2)
        return F.mse_loss(pred.float(), labels.gather(1, masked[..., None].expand(-1, -1, labels.shape[2])))

    def with_gradient(
        loss: Callable[[dict[str, Tensor]], Tensor],
    ) -> Callable[[dict[str, Tensor]], tuple[Tensor, ...]]:
        def run(x: dict[str, Tensor]) -> tuple[Tensor, ...]:
            value = loss(x)
            return value, *torch.autograd.grad(value, x["pred"])

        return run

    def exact(x: dict[str, Tensor]) -> tuple[Tensor, ...]:
        # The loss is a mean over all clips: float64 for the loss in slices, the gradient of a few clips.
        total = torch.zeros((), dtype=torch.float64, device=device)
        for i in range(shape.b):
            pred, video, masked = (x[k][i : i + 1] for k in ("pred", "video", "masked"))
            total += reference.masked_patch_loss(pred.detach().double(), video, masked, **grid) / shape.b
        few = {k: checked_clips(x[k].detach()) for k in ("pred", "video", "masked")}
        pred = few["pred"].double().requires_grad_()
        value = reference.masked_patch_loss(pred, few["video"], few["masked"], **grid)
        (grad,) = torch.autograd.grad(value, pred)
        return total, grad * (pred.shape[0] / shape.b)

    def ours(mode: str) -> Callable[[dict[str, Tensor]], Tensor]:
        loss = _in_mode(mode, kernels.masked_patch_loss)
        return lambda x: loss(x["pred"], x["video"], x["masked"], **grid)

    variants = [
        Variant(name="ours", run=with_gradient(ours("triton"))),
        Variant(name="torch path", run=with_gradient(ours("torch"))),
        Variant(
            name="official: labels, mse",
            run=with_gradient(lambda x: official(x["pred"], x["clip"], x["masked"])),
        ),
    ]
    if compiled:
        fast, fast_official = torch.compile(ours("torch")), torch.compile(official)
        variants += [
            Variant(name="compiled torch path", run=with_gradient(fast)),
            Variant(
                name="compiled official",
                run=with_gradient(lambda x: fast_official(x["pred"], x["clip"], x["masked"])),
            ),
        ]
    values = float(shape.b * shape.num_masked * shape.values)
    return OpBench(
        op="masked_patch_loss",
        shape=_shape_of(shape) | {"K": shape.num_masked},
        what="fwd+bwd",
        make=make,
        exact=exact,
        variants=variants,
        flops=12.0 * values,
        bytes=5.0 * values,  # bf16 pred in, uint8 pixels in, bf16 gradient out
    )


def tokens_bench(b: int, visible: int, masked: int, d: int, *, device: str, compiled: bool) -> OpBench:
    """The decoder's input, forward and backward."""

    def make(seed: int) -> dict[str, Tensor]:
        gen = torch.Generator(device).manual_seed(seed)
        n = visible + masked
        order = torch.rand(b, n, generator=gen, device=device).argsort(dim=1)
        bf16: dict[str, Any] = {"generator": gen, "device": device, "dtype": torch.bfloat16}
        return {
            "visible": torch.randn(b, visible, d, **bf16).requires_grad_(),
            "token": torch.randn(1, 1, d, generator=gen, device=device).requires_grad_(),
            "pos": torch.randn(n, d, generator=gen, device=device),
            "seen": order[:, :visible].sort(dim=1).values,
            "hidden": order[:, visible:].sort(dim=1).values,
            "dout": torch.randn(b, n, d, **bf16),
        }

    def through(op: Callable[..., Tensor]) -> Callable[[dict[str, Tensor]], tuple[Tensor, ...]]:
        def run(x: dict[str, Tensor]) -> tuple[Tensor, ...]:
            out = op(x["visible"], x["token"], x["pos"], x["seen"], x["hidden"])
            return (out, *torch.autograd.grad(out, (x["visible"], x["token"]), x["dout"]))

        return run

    def exact(x: dict[str, Tensor]) -> tuple[Tensor, ...]:
        leaves = [x[k].detach().double().requires_grad_() for k in ("visible", "token")]
        visible, token = leaves
        out = reference.assemble_decoder_tokens(visible, token, x["pos"].double(), x["seen"], x["hidden"])
        return out.detach(), *torch.autograd.grad(out, leaves, x["dout"].double())

    torch_path = _in_mode("torch", kernels.assemble_decoder_tokens)
    variants = [
        Variant(name="ours", run=through(_in_mode("triton", kernels.assemble_decoder_tokens))),
        Variant(name="torch path", run=through(torch_path)),
    ]
    if compiled:
        variants.append(Variant(name="compiled torch path", run=through(torch.compile(torch_path))))
    rows = b * (visible + masked)
    return OpBench(
        op="assemble_decoder_tokens",
        shape={"B": b, "V": visible, "M": masked, "D": d},
        what="fwd+bwd",
        make=make,
        exact=exact,
        variants=variants,
        flops=2.0 * rows * d,
        bytes=2.0 * d * (2 * rows + 2 * b * visible),
    )


def add_norm_bench(rows: int, d: int, *, device: str, compiled: bool) -> OpBench:
    """A candidate: residual add and layer norm, bfloat16 branch on a float32 stream, forward and backward."""

    def make(seed: int) -> dict[str, Tensor]:
        gen = torch.Generator(device).manual_seed(seed)
        wide: dict[str, Any] = {"generator": gen, "device": device}
        return {
            "x": torch.randn(rows, d, dtype=torch.bfloat16, **wide).requires_grad_(),
            "residual": torch.randn(rows, d, **wide).requires_grad_(),
            "weight": torch.randn(d, **wide).requires_grad_(),
            "bias": torch.randn(d, **wide).requires_grad_(),
            "dy": torch.randn(rows, d, dtype=torch.bfloat16, **wide),
            "dtotal": torch.randn(rows, d, **wide),
        }

    names = ("x", "residual", "weight", "bias")

    def through(op: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, ...]]:
        def run(x: dict[str, Tensor]) -> tuple[Tensor, ...]:
            leaves = [x[k] for k in names]
            y, total = op(*leaves, eps=1e-6)
            douts = (x["dy"].to(y.dtype), x["dtotal"].to(total.dtype))
            return y, total, *torch.autograd.grad((y, total), leaves, douts)

        return run

    def exact(x: dict[str, Tensor]) -> tuple[Tensor, ...]:
        leaf = {k: x[k].detach().double().requires_grad_() for k in names}
        return through(reference.add_layer_norm)(leaf | {k: x[k] for k in ("dy", "dtotal")})

    torch_path = _in_mode("torch", kernels.add_layer_norm)
    variants = [
        Variant(name="ours", run=through(_in_mode("triton", kernels.add_layer_norm))),
        Variant(name="torch path", run=through(torch_path)),
    ]
    if compiled:
        variants.append(Variant(name="compiled torch path", run=through(torch.compile(torch_path))))
    return OpBench(
        op="add_layer_norm",
        shape={"R": rows, "D": d},
        what="fwd+bwd",
        make=make,
        exact=exact,
        variants=variants,
        flops=20.0 * rows * d,
        # forward x, stream in, y, stream out: 12; backward dy, dtotal, stream in, dx, dstream out: 16
        bytes=28.0 * rows * d,
    )


def mlp_bench(rows: int, d: int, *, device: str, compiled: bool) -> OpBench:
    """A candidate: the block's MLP in bfloat16, forward and backward."""

    def make(seed: int) -> dict[str, Tensor]:
        gen = torch.Generator(device).manual_seed(seed)
        wide: dict[str, Any] = {"generator": gen, "device": device, "dtype": torch.bfloat16}
        shapes = {"x": (rows, d), "w1": (4 * d, d), "b1": (4 * d,), "w2": (d, 4 * d), "b2": (d,)}
        scale = {"w1": d**-0.5, "w2": (4 * d) ** -0.5}
        leaves = {k: (torch.randn(s, **wide) * scale.get(k, 1.0)).requires_grad_() for k, s in shapes.items()}
        return leaves | {"dy": torch.randn(rows, d, **wide)}

    names = ("x", "w1", "b1", "w2", "b2")

    def through(op: Callable[..., Tensor]) -> Callable[[dict[str, Tensor]], tuple[Tensor, ...]]:
        def run(x: dict[str, Tensor]) -> tuple[Tensor, ...]:
            leaves = [x[k] for k in names]
            out = op(*leaves)
            return (out, *torch.autograd.grad(out, leaves, x["dy"].to(out.dtype)))

        return run

    def exact(x: dict[str, Tensor]) -> tuple[Tensor, ...]:
        leaf = {k: x[k].detach().double().requires_grad_() for k in names}
        return through(reference.mlp)(leaf | {"dy": x["dy"]})

    torch_path = _in_mode("torch", kernels.mlp)
    variants = [
        Variant(name="ours", run=through(_in_mode("triton", kernels.mlp))),
        Variant(name="torch path", run=through(torch_path)),
    ]
    if compiled:
        variants.append(Variant(name="compiled torch path", run=through(torch.compile(torch_path))))
    return OpBench(
        op="mlp",
        shape={"R": rows, "D": d},
        what="fwd+bwd",
        make=make,
        exact=exact,
        variants=variants,
        flops=48.0 * rows * d * d,  # two products forward, four backward, each 2 * R * D * 4D
        bytes=2.0 * rows * d * (4 + 5 * 4),  # x, y, dy, dx; h, a written and read, dh written
    )


def op_benches(device: str, *, tiny: bool, compiled: bool) -> list[Callable[[], OpBench]]:
    """The published shapes at a batch of 64 (tiny: a few tokens, for the dry run), most telling first."""
    both: dict[str, Any] = {"device": device, "compiled": compiled}
    if tiny:
        clip = ClipShape(b=2, frames=4, side=16, patch=8, masked=0.5)
        return [
            lambda: attention_bench(2, 20, 2, 16, backward=True, **both),
            lambda: attention_bench(1, 20, 1, 16, backward=False, **both),
            lambda: gather_only_bench(clip, **both),
            lambda: gather_bench(clip, 32, **both),
            lambda: loss_bench(clip, **both),
            lambda: tokens_bench(2, 3, 5, 16, **both),
            lambda: add_norm_bench(6, 16, **both),
            lambda: mlp_bench(6, 16, **both),
        ]
    clip = ClipShape(b=64)
    return [
        lambda: attention_bench(64, 160, 12, 64, backward=False, **both),
        lambda: attention_bench(64, 160, 12, 64, backward=True, **both),
        lambda: attention_bench(64, 1568, 6, 64, backward=True, **both),
        lambda: gather_only_bench(clip, **both),
        lambda: gather_bench(clip, 768, **both),
        lambda: loss_bench(clip, **both),
        lambda: tokens_bench(64, 160, 1408, 384, **both),
        lambda: attention_bench(64, 1568, 6, 64, backward=False, **both),
        lambda: mlp_bench(64 * 1568, 384, **both),
        lambda: add_norm_bench(64 * 1568, 384, **both),
        lambda: attention_bench(64, 80, 12, 64, backward=True, **both),
        lambda: attention_bench(64, 392, 12, 64, backward=True, **both),
        lambda: attention_bench(64, 160, 16, 80, backward=True, **both),
        lambda: attention_bench(64, 944, 6, 64, backward=True, **both),
        lambda: attention_bench(64, 1568, 8, 80, backward=True, **both),
        lambda: gather_only_bench(ClipShape(b=64, masked=0.0), **both),
        lambda: loss_bench(ClipShape(b=64, masked=0.75), **both),
        lambda: mlp_bench(64 * 160, 768, **both),
        lambda: add_norm_bench(64 * 160, 768, **both),
    ]
