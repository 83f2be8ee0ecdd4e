"""A stand-in for certify.pipeline that is exact for a linear network on Linf balls: y = x W + b, by hand.

The tests of runner and command line need outcomes that are known beforehand, quick, and able to fail on order.
Environment: EXACT_DELAY seconds per sample.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from certify.attacks.replay import Replayer
from certify.errors import UsageError
from certify.model import Model
from certify.property import Box, Property
from certify.settings import Settings
from certify.verdict import Outcome, Verdict

Spoil = Callable[[Sequence[Property], list[Outcome]], list[Outcome]]


class Hooks:
    """What a test changes: `spoil` sees every batch of outcomes before it is returned, and may raise."""

    spoil: Spoil | None = None
    batch: int = 4
    calls: list[int]


hooks = Hooks()
hooks.calls = []


def batch_size(model: Model, settings: Settings) -> int:
    return hooks.batch


def pick_device(name: str) -> str:
    if name not in ("auto", "cpu"):
        raise UsageError(f"device {name!r}: not here")
    return "cpu"


def plan(model: Model, settings: Settings) -> str:
    return "exact, by hand"


def decide_each(
    model: Model,
    properties: Sequence[Property],
    settings: Settings,
    *,
    deadline: float | None = None,
    many: bool = False,
    cores: int = 1,
) -> Iterator[dict[int, Outcome]]:
    yield dict(enumerate(decide(model, properties, settings, deadline=deadline, many=many)))


def decide(
    model: Model,
    properties: Sequence[Property],
    settings: Settings,
    *,
    deadline: float | None = None,
    many: bool = False,
    cores: int = 1,
) -> list[Outcome]:
    hooks.calls.append(len(properties))
    stored = {t.name: numpy_helper.to_array(t) for t in onnx.load_from_string(model.onnx_bytes).graph.initializer}
    weight, bias = stored["W"].astype(np.float64), stored["b"].astype(np.float64)
    replayer = Replayer(model)
    outcomes = []
    for prop in properties:
        time.sleep(float(os.environ.get("EXACT_DELAY", "0")))
        outcomes.append(_one(prop, weight, bias, replayer))
    return hooks.spoil(properties, outcomes) if hooks.spoil else outcomes


def _one(prop: Property, weight: np.ndarray, bias: np.ndarray, replayer: Replayer) -> Outcome:
    (case,) = prop.cases
    box = case.inputs
    assert isinstance(box, Box)
    rows = np.concatenate([polytope.coeff for polytope in case.unsafe])
    slopes = rows @ weight.T
    corners = np.where(slopes > 0, box.lower.ravel(), box.upper.ravel())
    margins = np.sum(slopes * corners, axis=1) + rows @ bias
    worst = int(np.argmin(margins))
    lower = float(margins[worst])
    if lower > 0:
        return Outcome(Verdict.VERIFIED, "exact", lower=lower, seconds={"exact": 0.001})
    replay = replayer.replay(corners[worst].reshape(box.lower.shape), case)
    if replay.witness is None:
        return Outcome(Verdict.UNKNOWN, "exact", "too close to call", lower=lower, upper=replay.margin)
    return Outcome(Verdict.FALSIFIED, "exact", lower=lower, upper=replay.margin, witness=replay.witness)
