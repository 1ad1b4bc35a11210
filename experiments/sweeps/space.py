"""What a sweep varies, from the command line: `PATH=v1,v2,...` or `PATH=loguniform(1e-5,1e-3)`."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vmae.core.config import flatten, is_path, known_paths, override
from vmae.core.errors import InputError, nearest
from vmae.experiments.config import ExperimentConfig

Kind = Literal["values", "uniform", "loguniform", "randint", "choice"]
DISTRIBUTIONS = ("uniform", "loguniform", "randint", "choice")
_FORBIDDEN = ("name", "recipe", "train.seed", "pipeline.then", "pipeline.measure_every", "pipeline.probe_at")


@dataclass(frozen=True, kw_only=True)
class Param:
    """One field that a sweep varies.

    `values`: every one of `choices` is tried (a grid). The others are drawn from: `uniform` and `loguniform`
    between `low` and `high`, `randint` an integer from `low` to `high`, both included, `choice` one of
    `choices`. Drawn numbers are rounded to four digits, so that a trial's name holds its exact value.
    """

    path: str
    kind: Kind = "values"
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0

    @property
    def drawn(self) -> bool:
        return self.kind != "values"

    def draw(self, rng: random.Random) -> Any:
        """One value of a drawn parameter."""
        if self.kind == "choice":
            return rng.choice(self.choices)
        if self.kind == "randint":
            return rng.randint(int(self.low), int(self.high))
        if self.kind == "uniform":
            return rounded(rng.uniform(self.low, self.high))
        return rounded(math.exp(rng.uniform(math.log(self.low), math.log(self.high))))


def rounded(value: float) -> float:
    """To four significant digits."""
    return float(f"{value:.4g}")


def parse_params(texts: Iterable[str], base: ExperimentConfig) -> tuple[Param, ...]:
    """Read `--param` options; every value is read by its field's type and checked.

    Raises:
        InputError: no `=`, an unknown path (names the nearest), a path twice, a value that does not fit the
            field, a distribution with other bounds than it needs or that the field cannot hold.
    """
    params: list[Param] = []
    for text in texts:
        path, sign, right = (part.strip() for part in text.partition("="))
        if not sign or not path or not right:
            raise InputError(
                "--param: expected PATH=V1,V2,... or PATH=DISTRIBUTION(...), for example "
                f"mask.ratio=0.5,0.75 or optim.base_lr=loguniform(1e-5,1e-3); got '{text}'"
            )
        if any(p.path == path for p in params):
            raise InputError(f"--param: expected each field once, got {path} twice")
        params.append(parse_param(path, right, base))
    return tuple(params)


def parse_param(path: str, text: str, base: ExperimentConfig) -> Param:
    """One field's values or distribution; raises as `parse_params`."""
    if not is_path(ExperimentConfig, path):
        raise InputError(f"--param: unknown field '{path}'{nearest(path, known_paths(ExperimentConfig))}")
    if path in _FORBIDDEN:
        hint = "; use --seeds" if path == "train.seed" else ""
        raise InputError(f"--param: expected a field that a sweep can vary, got {path}{hint}")
    call = re.fullmatch(r"([A-Za-z_]+)\((.*)\)", text, re.DOTALL)
    if call is None:
        return Param(path=path, choices=typed_values(path, text, base))
    name, inside = call[1], call[2]
    if name not in DISTRIBUTIONS:
        known_names = ", ".join(DISTRIBUTIONS)
        raise InputError(f"{path}: expected one of {known_names}; got '{name}'{nearest(name, DISTRIBUTIONS)}")
    if name == "choice":
        return Param(path=path, kind="choice", choices=typed_values(path, inside, base))
    return _bounded(path, name, inside, base)


def typed_values(
    path: str, text: str, base: ExperimentConfig, brings: Mapping[str, Mapping[str, Any]] | None = None
) -> tuple[Any, ...]:
    """Values separated by commas, each read by the field's type; values that are lists stand in brackets.

    `brings`: by the text of a value, what else is set with it.

    Raises InputError for none, a value twice, or one that the field refuses.
    """
    parts = _split(text)
    if not parts:
        raise InputError(f"{path}: expected at least one value, got none")
    values = tuple(_typed(base, path, part, (brings or {}).get(part, {})) for part in parts)
    if len({str(v) for v in values}) != len(values):
        raise InputError(f"{path}: expected different values, got {', '.join(str(v) for v in values)}")
    return values


def _bounded(path: str, name: str, inside: str, base: ExperimentConfig) -> Param:
    try:
        low, high = (float(part) for part in _split(inside))
    except ValueError:
        raise InputError(f"{path}: expected {name}(LOW,HIGH) in numbers, got {name}({inside})") from None
    if not (low < high and math.isfinite(low) and math.isfinite(high)):
        raise InputError(f"{path}: expected {name}(LOW,HIGH) with LOW < HIGH, got {name}({inside})")
    if name == "loguniform" and low <= 0:
        raise InputError(f"{path}: expected loguniform bounds above 0, got {name}({inside})")
    if name == "randint":
        if low != int(low) or high != int(high):
            raise InputError(f"{path}: expected whole numbers in randint(LOW,HIGH), got {name}({inside})")
        tried: list[Any] = [int(low), int(high)]
    else:
        # Numbers between the bounds, which a whole-number field refuses.
        tried = [low, high, rounded(low + (high - low) * 0.37) + 1e-9]
    for value in tried:
        _check(base, path, value, f"{name}({inside})")
    kind: Kind = name  # type: ignore[assignment]
    return Param(path=path, kind=kind, low=low, high=high)


def _check(base: ExperimentConfig, path: str, value: Any, what: str) -> None:
    try:
        override(base, {path: value})
    except InputError as e:
        raise InputError(f"{path}: {what} does not fit the field: {e}") from None


def _typed(base: ExperimentConfig, path: str, text: str, more: Mapping[str, Any]) -> Any:
    return flatten(override(base, {**more, path: text}))[path]


def _split(text: str) -> list[str]:
    """At commas outside brackets; empty parts are left out."""
    parts, depth, current = [], 0, ""
    for character in text:
        depth += (character in "[(") - (character in "])")
        if character == "," and depth == 0:
            parts.append(current)
            current = ""
        else:
            current += character
    return [p.strip() for p in [*parts, current] if p.strip()]


def draw_samples(params: Iterable[Param], samples: int, seed: int) -> list[dict[str, Any]]:
    """`samples` different draws of the drawn parameters, the same for the same seed.

    Fewer come back where there are not so many different ones.
    """
    drawn = [p for p in params if p.drawn]
    rng = random.Random(f"vmae-{seed}")
    found: dict[str, dict[str, Any]] = {}
    for _ in range(samples * 50):
        if len(found) == samples:
            break
        sample = {p.path: p.draw(rng) for p in drawn}
        found.setdefault(str(sample), sample)
    return list(found.values())


# Where these vary, a loss measures another task: other clips, other targets, other tokens to predict.
_TASK_PREFIXES = ("mask.", "data.")
_TASK_FIELDS = tuple(
    f"model.{name}"
    for name in (
        "frames",
        "height",
        "width",
        "channels",
        "patch_size",
        "tubelet_size",
        "target",
        "loss",
        "mean",
        "std",
    )
)


def task_fields(paths: Iterable[str]) -> list[str]:
    """The swept fields that change what the pre-training loss measures."""
    return [p for p in paths if p.startswith(_TASK_PREFIXES) or p in _TASK_FIELDS]


def describe(params: Iterable[Param]) -> str:
    """The fields as a title: `mask.ratio x optim.base_lr`."""
    return " x ".join(p.path for p in params)
