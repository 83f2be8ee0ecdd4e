"""What holds in the reals, and not for what runs in float32: it is proved of the reals, and never of float32."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from onnx_exact import exact_run, float_runs, layers, net, vnnlib
from proofs_by_hand import accepted, proofs
from traps import Trap, concave, f32, trap, wide

from certify.frontends.onnx_import import load_model
from certify.frontends.vnn_spec import parse_property
from certify.pipeline import decide
from certify.settings import Settings
from certify.verdict import Verdict

# Bounds that overflow are part of what is tried here.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def slip_of_order() -> Trap:
    """w + 1 - w is 1; y = that."""
    w = 2.0**26
    ones = wide(1.0, 3)
    return Trap(
        layers(([[w, 1.0, -w], [-w, -1.0, w]], [0.0, 0.0]), ([[1.0, -1.0]], [0.0]), dtype=f32), ones, ones, ones, 0.5
    )


def slip_of_switch() -> Trap:
    """relu(x + w) - w is x >= 1/4."""
    w = 2.0**25
    return Trap(layers(([[1.0]], [w]), ([[1.0]], [-w]), ([[1.0]], [0.0]), dtype=f32), (0.25,), (1.0,), (0.25,), 0.125)


def slip_of_length() -> Trap:
    """w + 4096 ones - w."""
    weight = np.concatenate([[2.0**25], np.ones(4096), [-(2.0**25)]])[None]
    ones = wide(1.0, 4098)
    return Trap(layers((weight, [0.0]), ([[1.0]], [0.0]), dtype=f32), ones, ones, ones, 2048.0)


def slip_of_overflow() -> Trap:
    """-1e38 (1e38 x) 1e-38 1e-38 >= -1, but -inf."""
    file = layers(([[1e38]], [0.0]), ([[1e38]], [0.0]), ([[1e-38]], [0.0]), ([[-1e-38]], [0.0]), dtype=f32)
    return Trap(file, (0.5,), (1.0,), (1.0,), -2.0)


def slip_of_underflow() -> Trap:
    """2^-149 x, times 2^100, times 2^49."""
    file = layers(([[2.0**-149]], [0.0]), ([[2.0**100]], [0.0]), ([[2.0**49]], [0.0]), dtype=f32)
    return Trap(file, (0.25,), (0.5,), (0.5,), 0.125)


def slip_of_snapping() -> Trap:
    """2^30 (float32(0.1) - x) at x = 0.1, which the runtime rounds to float32(0.1): 1.6 in the reals, 0 for it."""
    near, w = float(np.float32(0.1)), 2.0**30
    file = layers(([[-w], [w]], [near * w, -near * w]), ([[1.0, -1.0]], [0.0]), dtype=f32)
    return Trap(file, (0.1,), (0.1,), (0.1,), 1.0)


def slip_of_snapping_alone() -> Trap:
    """relu(0.7) for a runtime is relu(float32(0.7)), and nothing else is computed."""
    return Trap(net([("Relu", ("x",), "y")], {}, 1, f32), (0.7,), (0.7,), (0.7,), 0.69999999)


def slip_by_a_hair() -> Trap:
    """A concave network and an offset just below its least value, that float32 sums go below."""
    file, x, least = concave(1.0, f32)
    offset = float(least + Fraction(1, 10**9) * least)
    assert Fraction(offset) < least
    return Trap(file, wide(0.0, 3), wide(1.0, 3), x, offset)


SLIPS = {
    make.__name__: make
    for make in (
        slip_of_order,
        slip_of_switch,
        slip_of_length,
        slip_of_overflow,
        slip_of_underflow,
        slip_of_snapping,
        slip_of_snapping_alone,
        slip_by_a_hair,
    )
}


def runtime(file: bytes, x: Any) -> float:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": np.asarray(x, dtype=np.float32).reshape(1, -1)})
    return float(y.ravel()[0])


@pytest.mark.parametrize("name", SLIPS)
def test_what_slips_in_float32_is_not_accepted_for_it(name: str) -> None:
    """The reals satisfy it and the checker says so; some float32 execution does not, and the checker says so."""
    found = SLIPS[name]()
    assert exact_run(found.file, found.x)[0] > Fraction(found.offset)
    seen = [float(y[0]) for y in float_runs(found.file, found.x)] + [runtime(found.file, found.x)]
    assert any(not y > found.offset for y in seen), seen
    made = load_model(found.file, check=False)
    prop = parse_property(vnnlib(found.lower, found.upper, [([1.0], found.offset)]), made.graph.input_shape, 1)
    how = {"attack": False, "device": "cpu", "check": True, "certificates": True, "timeout": 20.0}
    (real,) = decide(made, [prop], Settings(**how))
    assert (real.verdict, real.checked) == (Verdict.VERIFIED, "real"), real.reason
    assert real.certificate is not None
    assert not accepted(real.certificate, found.file, arithmetic="float32")
    for data in proofs(found.file, found.lower, found.upper, found.offset):
        assert not accepted(data, found.file, arithmetic="float32")
    (single,) = decide(made, [prop], Settings(arithmetic="float32", **{**how, "timeout": 0.3}))
    assert single.verdict is not Verdict.VERIFIED


def test_what_float32_satisfies_with_room_is_accepted_for_it() -> None:
    file, x, least = concave(1.0, f32)
    assert min(float(y[0]) for y in float_runs(file, x)) > float(least) * (1 + 1e-3)
    made = load_model(file, check=False)
    hair = trap("hair-0-of-1-float32")
    text = vnnlib(hair.lower, hair.upper, [([1.0], float(least) * (1 + 1e-3))])
    prop = parse_property(text, made.graph.input_shape, 1)
    settings = Settings(attack=False, device="cpu", check=True, arithmetic="float32", timeout=20.0)
    (found,) = decide(made, [prop], settings)
    assert (found.verdict, found.checked) == (Verdict.VERIFIED, "float32"), found.reason


def test_a_cast_that_rounds_the_input_is_no_float32_execution_of_it() -> None:
    """0.7 goes in as float64 and leaves as float32(0.7), below the offset; in the reals a cast is nothing."""
    kinds = TensorProto.DOUBLE, TensorProto.FLOAT
    ends = [helper.make_tensor_value_info(n, k, [1, 1]) for n, k in zip("xy", kinds, strict=True)]
    nodes = [helper.make_node("Cast", ["x"], ["c"], to=kinds[1]), helper.make_node("Relu", ["c"], ["y"])]
    graph = helper.make_graph(nodes, "cast", ends[:1], ends[1:])
    file = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
    for data in proofs(file, (0.7,), (0.8,), 0.69999999):
        assert accepted(data, file)
        assert not accepted(data, file, arithmetic="float32")
