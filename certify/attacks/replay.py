"""The judge of witnesses: onnxruntime, on an input that lies inside the input set for certain.

A witness stands when (1) its input, a number of the model's dtype in every coordinate, lies in the set rounded
inward, decided exactly; (2) onnxruntime, running the user's own file on that very array alone in its batch, answers
finite outputs; (3) some unsafe polytope contains them, decided in rationals. Attacks only propose inputs.
A coordinate whose interval holds no number of the dtype is snapped to the nearest one and counted in the witness.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from certify.errors import ModelError
from certify.model import Model
from certify.property import Box, Case, Float64, InputSet, LpBall
from certify.verdict import Witness

Mask = NDArray[np.bool_]
Number = NDArray[np.floating[Any]]

RUN_CHUNK = 256  # inputs per onnxruntime call of a model with dynamic batch: bounds its memory, costs no speed
SHRINKS = 27  # times 4 from 2^-53 to 1: every dtype's rounding is met before the whole way to the centre is given up
BATCH_AGREEMENT = 1e-3  # relative; a model whose rows differ more when batched mixes its samples and is run one by one


@dataclass(frozen=True, eq=False)
class Replay:
    """What onnxruntime said about one input: its witness if it is one, and margin(y) (inf where y is not finite).

    The margin is min over polytopes of max over rows (C y - d), in units of the rows; with a strict row it may be 0
    and yet no witness.
    """

    witness: Witness | None
    margin: float


class Replayer:
    """Runs a model in onnxruntime on the CPU and decides what is a witness.

    The session is made at the first run and left out when the object is pickled. `threads`: of onnxruntime's
    one session; 1 keeps sums in one order and leaves the other cores to the caller.
    """

    def __init__(self, model: Model, threads: int = 1) -> None:
        self._model_bytes = model.onnx_bytes
        self._name = model.input_name
        self._source = model.source
        self._shape = model.onnx_shape
        self._threads = threads
        self._session: Any = None
        # None: not tried yet. A dynamic batch axis is a claim of the file (a constant Reshape [1, n] breaks it).
        self._batched: bool | None = None if self._shape and self._shape[0] < 0 else False
        self.dtype: np.dtype[Any] = np.dtype(model.input_dtype)
        self.input_shape = model.graph.input_shape
        self._outputs = int(np.prod(model.graph.output_shape))
        if self.dtype.kind != "f":
            raise ModelError(
                f"{model.source}: inputs of type {self.dtype} cannot be replayed; export with float inputs"
            )
        fixed = int(np.prod([n for n in self._shape if n >= 0]))
        if fixed != int(np.prod(self.input_shape)) or sum(n < 0 for n in self._shape) > 1:
            raise ModelError(
                f"{model.source}: input shape {self._shape} is not one sample of shape {self.input_shape}; "
                "export with batch size 1 or a dynamic batch"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_session": None}

    def run(self, x: Number) -> Float64:
        """Outputs of onnxruntime, (B, n_out) float64, for x (B, *input_shape), rounded to the model's dtype.

        Not finite outputs are passed on. Rows of a batch may differ in the last bits from the same row run alone.
        """
        if tuple(x.shape[1:]) != self.input_shape:
            raise ValueError(f"replay: inputs of shape {x.shape[1:]} for a model of input shape {self.input_shape}")
        with np.errstate(over="ignore"):
            x = np.ascontiguousarray(x, dtype=self.dtype)
        chunk = RUN_CHUNK if len(x) > 1 and self.can_batch(x[:2]) else 1
        parts = [self._call(x[i : i + chunk]) for i in range(0, len(x), chunk)]
        return np.concatenate(parts) if parts else np.zeros((0, self._outputs))

    def clean_predictions(self, x: Number) -> NDArray[np.int64]:
        """argmax of the outputs per row of x (B, *input_shape): the first of equals, -1 where one is not finite."""
        y = self.run(x)
        best = np.argmax(np.where(np.isnan(y), np.inf, y), axis=1).astype(np.int64)
        return np.where(np.isfinite(y).all(axis=1), best, -1)

    def round_inward(self, x: Number, input_set: InputSet) -> tuple[Number, int]:
        """x moved into the inner set in the model's dtype, and how many coordinates had to be snapped."""
        rounded, snapped = round_inward(x, input_set, self.dtype)
        return rounded, int(snapped.sum())

    def judge(self, x: Number, case: Case) -> Witness | None:
        """The witness that x (*input_shape or flat, any float dtype) becomes once rounded inward, or None."""
        return self.replay(x, case).witness

    def judge_batch(self, xs: Sequence[Number] | Number, cases: Sequence[Case]) -> list[Witness | None]:
        """`judge` for candidates xs[i] of cases[i]."""
        return [r.witness for r in self.replay_batch(xs, cases)]

    def replay(self, x: Number, case: Case) -> Replay:
        """Round x inward, run it alone, judge the outputs."""
        rounded, snapped = round_inward(x, case.inputs, self.dtype)
        if not _admissible(rounded, snapped, case.inputs):
            return Replay(None, np.inf)
        return self._alone(rounded.reshape(self.input_shape), int(snapped.sum()), case)

    def replay_batch(self, xs: Sequence[Number] | Number, cases: Sequence[Case]) -> list[Replay]:
        """`replay` for candidates xs[i] of cases[i]; margins of what is no witness may come from a batched run."""
        if len(xs) != len(cases):
            raise ValueError(f"replay: {len(xs)} candidates for {len(cases)} cases")
        if self._batched is False:
            return [self.replay(x, case) for x, case in zip(xs, cases, strict=True)]
        out = [Replay(None, np.inf)] * len(cases)
        rounded = [round_inward(x, case.inputs, self.dtype) for x, case in zip(xs, cases, strict=True)]
        fit = [i for i, case in enumerate(cases) if _admissible(*rounded[i], case.inputs)]
        if not fit:
            return out
        batch = np.stack([rounded[i][0].reshape(self.input_shape) for i in fit])
        for i, x, y in zip(fit, batch, self.run(batch), strict=True):
            out[i] = Replay(None, margin(y, cases[i]))
            if out[i].margin <= 0:
                out[i] = self._alone(x, int(rounded[i][1].sum()), cases[i])
        return out

    def _alone(self, x: Number, snapped: int, case: Case) -> Replay:
        y = self._call(x[None])[0]
        if not np.isfinite(y).all():
            return Replay(None, np.inf)
        found = any(polytope.contains(y) for polytope in case.unsafe)
        return Replay(Witness(x, y, snapped) if found else None, margin(y, case))

    def _call(self, x: Number) -> Float64:
        """One onnxruntime call on x (b, *input_shape); b = 1 where the batch is fixed."""
        if self._session is None:
            self._session = self._open()
        shape = tuple(len(x) if n < 0 else n for n in self._shape)
        try:
            outputs = self._session.run(None, {self._name: x.reshape(shape)})
        except Exception as error:  # onnxruntime's exception classes share no public base
            raise ModelError(f"{self._source}: onnxruntime fails on an input of shape {shape}: {error}") from error
        y = np.asarray(outputs[0], dtype=np.float64)
        if y.size != len(x) * self._outputs:
            raise ModelError(
                f"{self._source}: onnxruntime gives outputs of shape {y.shape} for {len(x)} input(s), "
                f"expected {self._outputs} numbers each; export the model with batch size 1"
            )
        return y.reshape(len(x), self._outputs)

    def can_batch(self, pair: Number) -> bool:
        """Do two rows give the same outputs together as alone (both not finite counts as the same)?"""
        if self._batched is None:
            alone = np.concatenate([self._call(row[None]) for row in pair])
            try:
                together = self._call(pair)
            except ModelError:
                self._batched = False
            else:
                size = np.max(np.abs(alone), initial=0.0, where=np.isfinite(alone))
                self._batched = bool(
                    np.allclose(together, alone, BATCH_AGREEMENT, BATCH_AGREEMENT * size, equal_nan=True)
                )
        return self._batched

    def _open(self) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what it could not do is told below
        levels = onnxruntime.GraphOptimizationLevel
        for level in (levels.ORT_ENABLE_ALL, levels.ORT_DISABLE_ALL):  # it fails to optimise some float64 networks
            options.graph_optimization_level = level
            try:
                return onnxruntime.InferenceSession(self._model_bytes, options, providers=["CPUExecutionProvider"])
            except Exception as error:  # onnxruntime's exception classes share no public base
                why = error
        raise ModelError(f"{self._source}: onnxruntime cannot load the model: {why}") from why


def margin(y: Float64, case: Case) -> float:
    """min over polytopes of max over rows (C y - d) for y (n_out,); inf if any output is not finite."""
    if not np.isfinite(y).all():
        return float(np.inf)
    return min((-polytope.violation(y) for polytope in case.unsafe), default=float(np.inf))


def inside(x: Number, input_set: InputSet) -> bool:
    """Does every coordinate lie in the inner box and |x - center|_p <= inner_eps hold? Decided exactly.

    x: float16, float32 or float64, of the set's shape or flat. NaN is outside.
    """
    point = np.asarray(x, dtype=np.float64).ravel()
    box = input_set if isinstance(input_set, Box) else input_set.box
    assert point.size == box.lower.size, f"{point.size} coordinates for a set of {box.lower.size}"
    return _in_box(point, box, np.zeros(point.shape, dtype=bool)) and _in_ball(point, input_set)


def round_inward(x: Number, input_set: InputSet, dtype: np.dtype[Any]) -> tuple[Number, Mask]:
    """The numbers of `dtype` nearest to x in the inner set, of the set's shape, and the mask of snapped coordinates.

    Each interval is [lowest number >= inner_lower, highest number <= inner_upper]; where that is empty the number
    nearest to its middle is taken. Balls: the input moves towards the centre until it is inside for certain; where
    not even the centre's own rounding is, that is returned with every inexact coordinate marked as snapped.
    """
    box = input_set if isinstance(input_set, Box) else input_set.box
    point = np.asarray(x, dtype=np.float64).reshape(box.lower.shape)
    low, high = _round_up(box.inner_lower, dtype), _round_down(box.inner_upper, dtype)
    snapped: Mask = low > high
    middle = _nearest(box.inner_lower + 0.5 * (box.inner_upper - box.inner_lower), dtype)
    low, high = np.where(snapped, middle, low), np.where(snapped, middle, high)
    if isinstance(input_set, Box):
        return np.clip(_nearest(point, dtype), low, high), snapped
    return _into_ball(point, input_set, (low, high), snapped)


def _into_ball(point: Float64, ball: LpBall, limits: tuple[Number, Number], snapped: Mask) -> tuple[Number, Mask]:
    """Shrink (point - center) until the rounded point is certainly in the ball; limits: the box in the dtype."""
    low, high = limits
    dtype = low.dtype
    center = np.clip(ball.center, low.astype(np.float64), high.astype(np.float64))
    point = np.clip(point, low.astype(np.float64), high.astype(np.float64))
    candidate: Number = np.clip(_nearest(point, dtype), low, high)
    if _in_ball(candidate.astype(np.float64).ravel(), ball):
        return candidate, snapped
    away = point - center
    norm = float(np.sqrt(np.sum(away * away)) if ball.p == 2 else np.sum(np.abs(away)))
    scale = min(1.0, ball.inner_eps / norm) if norm > 0 else 1.0
    back = float(np.finfo(dtype).eps) / 2
    for _ in range(SHRINKS):
        target = center + away * (scale * (1 - back))
        # Towards the centre where a number lies between; nearest to the centre where none does.
        toward = np.where(target >= center, _round_down(target, dtype), _round_up(target, dtype))
        passed = np.where(target >= center, toward < center, toward > center)
        candidate = np.clip(np.where(passed, _nearest(center, dtype), toward), low, high)
        if _in_ball(candidate.astype(np.float64).ravel(), ball):
            return candidate, snapped
        back = min(1.0, back * 4)
    rounded = np.clip(_nearest(ball.center, dtype), low, high)
    if _in_ball(rounded.astype(np.float64).ravel(), ball):
        return rounded, snapped
    return rounded, snapped | (rounded.astype(np.float64) != ball.center)


def _admissible(x: Number, snapped: Mask, input_set: InputSet) -> bool:
    """Is the rounded x finite and inside, up to snapped coordinates (each nearest to its interval or centre)?"""
    point = x.astype(np.float64).ravel()
    if not np.isfinite(point).all():
        return False
    if isinstance(input_set, Box):
        return _in_box(point, input_set, snapped.ravel())
    if _in_box(point, input_set.box, snapped.ravel()) and _in_ball(point, input_set):
        return True
    # A ball that holds no number of the dtype: only the rounding of its centre is let through, and only in the box.
    nearest = _nearest(input_set.center, x.dtype).astype(np.float64).ravel()
    moved = point != input_set.center.ravel()
    box = input_set.box
    within = bool(np.all((point >= box.lower.ravel()) & (point <= box.upper.ravel())))
    return within and bool(np.array_equal(point, nearest)) and bool((snapped.ravel() | ~moved).all())


def _in_box(point: Float64, box: Box, skip: Mask) -> bool:
    above = point >= box.inner_lower.ravel()
    below = point <= box.inner_upper.ravel()
    return bool(((above & below) | skip).all())


def _in_ball(point: Float64, input_set: InputSet) -> bool:
    """|point - center|_p <= inner_eps, by float64 with an error bound, else by rationals. True for a box."""
    if isinstance(input_set, Box):
        return True
    eps = float(input_set.inner_eps)
    if not (np.isfinite(point).all() and 0 <= eps < np.inf):
        return False
    away = point - input_set.center.ravel()
    moved = np.flatnonzero(away)
    # n + 8 roundings of relative size 2^-53 at most, doubled; near overflow or underflow the rationals decide.
    slack = (len(moved) + 8) * 2.0**-52
    if 2.0**-400 < eps < 2.0**400 and np.max(np.abs(away), initial=0.0) < 2.0**400:
        total, limit = float(np.sum(np.abs(away[moved]) ** input_set.p)), eps**input_set.p
        if total * (1 + slack) + len(moved) * 2.0**-1000 <= limit * (1 - slack):
            return True
        if total * (1 - slack) > limit * (1 + slack):
            return False
    center = input_set.center.ravel()
    exact = sum(
        (abs(Fraction(float(point[i])) - Fraction(float(center[i]))) ** input_set.p for i in moved), Fraction(0)
    )
    return exact <= Fraction(eps) ** input_set.p


def _nearest(x: Float64, dtype: np.dtype[Any]) -> Number:
    with np.errstate(over="ignore"):
        return x.astype(dtype)


def _round_up(x: Float64, dtype: np.dtype[Any]) -> Number:
    """The lowest number of the dtype that is >= x."""
    near = _nearest(x, dtype)
    return np.where(near.astype(np.float64) < x, np.nextafter(near, dtype.type(np.inf)), near)


def _round_down(x: Float64, dtype: np.dtype[Any]) -> Number:
    """The highest number of the dtype that is <= x."""
    near = _nearest(x, dtype)
    return np.where(near.astype(np.float64) > x, np.nextafter(near, dtype.type(-np.inf)), near)
