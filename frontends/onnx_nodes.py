"""What the ONNX op handlers work with: values at batch 1, constants, one call of an op, and the table of handlers.

The network is read as what it computes for one sample: every tensor has its full ONNX shape with the batch axis
at size 1, so shapes and Shape chains are plain numbers and any rearrangement of axes, the batch axis included, has
a clear meaning. Whether larger batches give the same is for the import check to find out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from certify.frontends import inexact
from certify.frontends.inexact import Known
from certify.frontends.lower import Builder

Array = np.ndarray[Any, Any]
ShapeN = tuple[int, ...]


class Unsupported(Exception):
    """A node that cannot be lowered; the message says why and what to do. Collected into errors.UnsupportedOps."""


@dataclass(frozen=True)
class Value:
    """An activation: the numbers of a Builder node in row-major order under the ONNX shape (batch axis of size 1)."""

    node: int
    shape: ShapeN


@dataclass(frozen=True)
class FinalSoftmax:
    """The output of a (Log)Softmax over all classes: only allowed as the network's output, where it is dropped."""

    logits: Value
    op_type: str


Tensor = Value | Known | FinalSoftmax


def core_shape(shape: ShapeN) -> ShapeN:
    """The shape that a Builder node gets for an ONNX shape: without a leading 1, never of rank 0."""
    if not shape:
        return (1,)
    return shape[1:] if len(shape) > 1 and shape[0] == 1 else shape


@dataclass
class Call:
    """One node being lowered. Handlers read `attribute`s; one that no handler has read is an error."""

    name: str
    op_type: str
    opset: int
    since: int
    inputs: tuple[Tensor | None, ...]
    attributes: dict[str, Any]
    used_outputs: tuple[bool, ...]
    builder: Builder
    read: set[str] = field(default_factory=set)

    def attribute(self, name: str, default: Any = None) -> Any:
        """The attribute's value or the default."""
        self.read.add(name)
        return self.attributes.get(name, default)

    def expect(self, name: str, *allowed: Any) -> None:
        """The attribute must be missing or one of the allowed values."""
        value = self.attribute(name, allowed[0])
        if value not in allowed:
            raise Unsupported(f"attribute {name}={value!r} is not supported; allowed: {', '.join(map(repr, allowed))}")

    def input(self, i: int) -> Tensor | None:
        """Input i, None if it is left out."""
        return self.inputs[i] if i < len(self.inputs) else None

    def value(self, i: int) -> Value:
        """Input i as an activation; a constant becomes a node that does not depend on the input."""
        tensor = self.input(i)
        if tensor is None:
            raise Unsupported(f"input {i} is missing")
        return self.as_value(tensor)

    def as_value(self, tensor: Tensor) -> Value:
        """The tensor as an activation."""
        if isinstance(tensor, Value):
            return tensor
        if isinstance(tensor, FinalSoftmax):
            raise Unsupported(f"{tensor.op_type} is supported only as the last op; export the network up to its logits")
        shape = core_shape(tensor.shape)
        nothing = self.builder.select(0, np.full(math.prod(shape), -1), shape)
        numbers = weights(finite(tensor)).reshape(shape)
        return Value(self.builder.scale(nothing, 1.0, numbers), tensor.shape)

    def constant(self, i: int, what: str) -> Known:
        """Input i, which must be a constant of finite numbers."""
        tensor = self.input(i)
        if not isinstance(tensor, Known):
            raise Unsupported(f"{what} must be a constant; fold constants on export, or freeze the weights")
        return finite(tensor)

    def optional(self, i: int, what: str) -> Known | None:
        """Input i as a constant, None if left out."""
        return None if self.input(i) is None else self.constant(i, what)

    def integers(self, i: int, what: str) -> list[int] | None:
        """Input i as a list of constant integers, None if left out."""
        tensor = self.input(i)
        if tensor is None:
            return None
        if not isinstance(tensor, Known) or tensor.value.dtype.kind not in "iu":
            raise Unsupported(f"{what} must be constant integers; export with fixed shapes")
        return [int(n) for n in tensor.value.reshape(-1)]

    def settings(self, name: str, i: int) -> list[int] | None:
        """Integers that older opsets keep in attribute `name`, newer ones in input i; None if neither is there."""
        listed = self.attribute(name)
        return list(listed) if listed is not None else self.integers(i, name)

    def view(self, value: Value, shape: ShapeN) -> int:
        """The Builder node of the value under the given core shape."""
        return self.builder.reshape(value.node, shape)

    def core(self, value: Value) -> int:
        """The Builder node of the value under its own core shape."""
        return self.view(value, core_shape(value.shape))

    def sample_first(self, value: Value) -> int:
        """The node of a value whose first axis is the batch of 1, without that axis."""
        if len(value.shape) < 2 or value.shape[0] != 1:
            raise Unsupported(f"input of shape {value.shape}: the first axis must be a batch of 1 here")
        return self.view(value, value.shape[1:])

    def move(self, tensor: Tensor, change: Callable[[Array], Array]) -> Tensor:
        """A rearrangement of numbers (numpy function of the full array) applied to a constant or to an activation."""
        if isinstance(tensor, Known):
            return tensor.move(change)
        value = self.as_value(tensor)
        places = np.arange(math.prod(value.shape), dtype=np.int64).reshape(value.shape)
        moved = np.asarray(change(places))
        if moved.size == 0:
            raise Unsupported(f"it yields an empty tensor of shape {moved.shape}")
        return Value(self.builder.select(value.node, moved, core_shape(moved.shape)), moved.shape)


def finite(constant: Known) -> Known:
    """The constant, which must hold numbers only."""
    if constant.value.dtype.kind == "f" and not np.all(np.isfinite(constant.value)):
        raise Unsupported("its constants hold NaN or infinity; the file is damaged or training diverged")
    return constant


def float_type(array: Array) -> Any:
    """The dtype that graph constants get: float16 is widened, which is exact."""
    return np.float64 if array.dtype == np.float64 else np.float32


def number(constant: Known) -> float:
    """A constant of one number, exact."""
    if constant.value.size != 1 or np.any(constant.error):
        raise Unsupported(f"a single exact number is needed, not a constant of shape {constant.shape}")
    return float(constant.value.reshape(-1)[0])


def aligned(shape: ShapeN, out: ShapeN) -> ShapeN:
    """The core shape with which something of ONNX shape `shape` broadcasts to core_shape(out)."""
    padded = (1,) * (len(out) - len(shape)) + shape
    return core_shape(out) if not out else padded[len(out) - len(core_shape(out)) :]


def align(constant: Known, out: ShapeN) -> Known:
    """The constant shaped to broadcast to core_shape(out)."""
    return constant.reshape(aligned(constant.shape, out))


def weights(constant: Known) -> Known:
    """The constant as weights: as stored, float16 widened to float32, writable (torch wants that)."""
    if constant.value.dtype.kind != "f":
        raise Unsupported(f"weights of type {constant.value.dtype} are not supported; use float16, float32 or float64")
    copy = not constant.value.flags.writeable
    return Known(constant.value.astype(float_type(constant.value), copy=copy), constant.error)


Handler = Callable[[Call], "Tensor | Sequence[Tensor | None]"]


@dataclass(frozen=True)
class Entry:
    """A handler, the op revisions (`since_version`) it knows, and whether it also takes constants only."""

    function: Handler
    versions: tuple[int, ...]
    moves: bool


HANDLERS: dict[str, Entry] = {}


def handles(*op_types: str, versions: Sequence[int], moves: bool = False) -> Callable[[Handler], Handler]:
    """Decorator: the function lowers these ops in these revisions; a second handler for one op is an error."""

    def register(function: Handler) -> Handler:
        for op_type in op_types:
            if op_type in HANDLERS:
                raise ValueError(f"{op_type} has a handler already")
            HANDLERS[op_type] = Entry(function, tuple(versions), moves)
        return function

    return register


def exact(value: Any) -> Known:
    """An exact constant."""
    return inexact.known(np.asarray(value))
