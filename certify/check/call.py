"""The call of one ONNX op: its inputs and attributes looked up; and the table of all ops that are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from certify.check import constants
from certify.check.constants import Constant, exact
from certify.check.errors import Rejected
from certify.check.sketch import LARGEST, Array, Sketch, Tensor, Value


@dataclass
class Call:
    """One ONNX node with its inputs. What of its attributes no handler asks for is an error."""

    node: Any  # onnx.NodeProto
    opset: int
    since: int
    inputs: tuple[Tensor | None, ...]
    attributes: dict[str, Any]
    used: tuple[bool, ...]  # of the outputs
    sketch: Sketch
    asked: set[str] = field(default_factory=set)

    @property
    def op(self) -> str:
        return str(self.node.op_type)

    def attribute(self, name: str, default: Any = None) -> Any:
        self.asked.add(name)
        return self.attributes.get(name, default)

    def number(self, name: str, default: float) -> Constant:
        """A float attribute; the default as float32, like all that are stored."""
        return exact(np.float64(self.attribute(name, float(np.float32(default)))))

    def expect(self, name: str, only: Any) -> None:
        if (value := self.attribute(name, only)) != only:
            raise Rejected(f"attribute {name} = {value!r}")

    def input(self, i: int) -> Tensor | None:
        return self.inputs[i] if i < len(self.inputs) else None

    def data(self, i: int = 0) -> Tensor:
        """Input i."""
        found = self.input(i)
        if found is None:
            raise Rejected(f"input {i} is missing")
        if isinstance(found, Value) and found.softmax:
            raise Rejected("it reads a Softmax, which may only end the network")
        return found

    def value(self, i: int = 0) -> Value:
        """Input i as an activation; a constant becomes a node that reads nothing."""
        found = self.data(i)
        return self.sketch.constant(found) if isinstance(found, Constant) else found

    def sample(self) -> Value:
        """Input 0, whose first axis is the batch of 1."""
        value = self.value()
        if len(value.shape) < 2 or value.shape[0] != 1:
            raise Rejected(f"an input of shape {value.shape}, whose first axis is no batch of 1")
        return value

    def constant(self, i: int) -> Constant:
        found = self.data(i)
        if not isinstance(found, Constant):
            raise Rejected(f"input {i} must be constant")
        return found

    def weights(self, i: int) -> Constant:
        return self.constant(i).float64()

    def settings(self, name: str, i: int) -> list[int] | None:
        """Integers that older revisions keep in attribute `name`, newer ones in input i."""
        listed = self.attribute(name)
        if listed is not None:
            return [int(n) for n in listed]
        return None if self.input(i) is None else self.constant(i).integers()

    def reference(self, inputs: Sequence[Array | None]) -> list[Array]:
        """The node computed by onnx's reference implementation, with these inputs."""
        from onnx.reference import ReferenceEvaluator  # 0.1 s, which few files need

        self.asked.update(self.attributes)
        names, outputs = ([n for n in some if n] for some in (self.node.input, self.node.output))
        opset = [onnx.helper.make_opsetid("", self.opset)]
        one = onnx.helper.make_function("one", "One", list(dict.fromkeys(names)), outputs, [self.node], opset)
        feed = {n: a for n, a in zip(self.node.input, inputs, strict=True) if a is not None}
        try:
            found = dict(zip(outputs, ReferenceEvaluator(one).run(None, feed, attributes={}), strict=True))
        except Exception as error:  # whatever the reference stumbles over
            raise Rejected(f"onnx's reference cannot compute it: {error}") from error
        return [np.asarray(found.get(n, ())) for n in self.node.output]

    def folded(self) -> list[Constant]:
        """The outputs of a node all of whose inputs are exact or float constants."""
        operands = [t for t in self.inputs if isinstance(t, Constant)]
        whole = all(t.lower.dtype.kind in "iub" for t in operands)
        known = constants.CHOOSE | constants.COUNT if whole else constants.CHOOSE
        if self.op in known and all(t.exact for t in operands):
            if self.attributes.get("reduction", "none") != "none":
                raise Rejected("it adds up constants")  # in their own type: that rounds
            if self.op in ("Div", "Mod") and any((t.lower < 0).any() for t in operands):
                raise Rejected("a quotient of negative integers")
            if self.op in ("Mod", "ReduceSum", "ReduceProd"):
                sizes = np.abs(operands[0].lower, dtype=np.float64)
                if (sizes.clip(1).prod() if self.op == "ReduceProd" else sizes.sum()) >= LARGEST:
                    raise Rejected("large integers")  # for which runtimes compute these in floats
            if any(t.is_float and np.isnan(t.lower).any() for t in operands):
                raise Rejected("a constant holds NaN")
            arrays = [t.lower if isinstance(t, Constant) else None for t in self.inputs]
            return [exact(a) for a in self.reference(arrays)]
        if whole:
            raise Rejected("this op on constants is not supported; fold constants in the file")
        self.sketch.doubt("computes a constant, which a runtime may round step by step")
        return [constants.computed(self.op, operands)]


Handler = Callable[[Call], "Tensor | list[Tensor]"]
# op -> what reads it, in which revisions (`since_version`), and whether it also takes constants only.
HANDLERS: dict[str, tuple[Handler, tuple[int, ...], bool]] = {}


def handles(*ops: str, since: Sequence[int], moves: bool = False) -> Callable[[Handler], Handler]:
    """Decorator: the function reads these ops in these revisions."""

    def register(function: Handler) -> Handler:
        HANDLERS.update({op: (function, tuple(since), moves) for op in ops})
        return function

    return register
