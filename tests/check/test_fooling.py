"""Networks made to fool arithmetic in floats: a property that is false in the reals is never proved.

Sources. Zombori, Banhelyi, Csendes, Megyeri, Jelasity, "Fooling a complete neural network verifier", ICLR 2021: a
switch relu(x + w) - w with w so large that floats lose x; over several layers; among other neurons. Jia & Rinard,
"Exploiting verified neural networks via floating point numerical error", SAS 2021: properties violated by a hair, or
satisfied by a hair in the reals and violated by what runs. Higham, "Accuracy and stability of numerical algorithms",
2002: sums that depend on their order.

No network is trained; each is small enough that rationals decide, and every test first has them say so. Attacks are
off and the import is not compared with onnxruntime, so that the provers are judged alone -- without the checker
first, so that no bug of theirs hides behind it -- and then the checker, on certificates written by hand.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import pytest
from check_cases import packed
from onnx import TensorProto, helper
from onnx_exact import exact_run, float_runs, layers, net, vnnlib

from certify.check.checker import check
from certify.check.content import Before
from certify.check.errors import Rejected
from certify.check.read_onnx import fingerprint, read_network
from certify.frontends.onnx_import import load_model
from certify.frontends.vnn_spec import parse_property
from certify.pipeline import decide
from certify.property import Property
from certify.settings import Settings
from certify.verdict import Outcome, Verdict

# Bounds that overflow are part of what is tried here.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

METHODS = ("auto", "ibp", "crown", "alpha-crown", "lp", "mip")
SECONDS = {"auto": 0.2, "mip": 0.2}
f32, f64 = np.float32, np.float64


@dataclass(frozen=True)
class Trap:
    """Network `file` over the box [lower, upper]: y <= offset is unsafe, and at x the network is.

    safe: an offset that is comfortably true and that some method proves; None where it would be unfair to ask.
    """

    file: bytes
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    x: tuple[float, ...]
    offset: float
    safe: float | None = None


def wide(number: float, count: int) -> tuple[float, ...]:
    return (number,) * count


def switch(dtype: Any) -> Trap:
    """relu(x + w) - w is x, but 0 in floats; the margin 1/2 - x is then 1/2 everywhere."""
    w = 2.0**54 if dtype is f64 else 2.0**25
    file = layers(([[1.0]], [w]), ([[1.0]], [-w]), ([[-1.0]], [0.5]), dtype=dtype)
    return Trap(file, (0.0,), (1.0,), (1.0,), 0.0, -(2.0**14))


def split_switch(dtype: Any) -> Trap:
    """w grows by 2^6 a layer (or 2^5), no weight is large; x is carried along."""
    step, count = (64.0, 9) if dtype is f64 else (32.0, 5)
    first = ([[1.0], [0.0]], [0.0, 1.0])
    grow = ([[1.0, 0.0], [0.0, step]], [0.0, 0.0])
    both, apart = ([[1.0, 1.0], [0.0, 1.0]], [0.0, 0.0]), ([[1.0, -1.0]], [0.0])
    file = layers(first, *[grow] * count, both, apart, ([[-1.0]], [0.5]), dtype=dtype)
    return Trap(file, (0.0,), (1.0,), (1.0,), 0.0, -(2.0**14))


def hidden_switch(dtype: Any) -> Trap:
    """The switch spread over three layers, among eight other neurons a layer that read it and are read."""
    rng = np.random.default_rng(5)
    w, count, read = (2.0**18 if dtype is f64 else 2.0**8), 8, 4

    def dyadic(*shape: int) -> Any:
        return rng.integers(-8, 9, shape) / 8.0

    first = (np.vstack([np.eye(2, read), dyadic(count, read)]), np.concatenate([[0.0, w], dyadic(count)]))
    first[0][1] = 0
    grow = [[1.0, 0.0], [0.0, w]]
    blocks = []
    for top in (grow, grow, [[1.0, 1.0], [0.0, 1.0]]):
        weight = np.zeros((2 + count, 2 + count))
        weight[:2, :2], weight[2:, 2:] = top, dyadic(count, count) / 4
        weight[2:, 0] = dyadic(count) / 8
        blocks.append((weight, np.concatenate([[0.0, 0.0], dyadic(count)])))
    last = np.concatenate([[[1.0, -1.0]], np.zeros((1, count))], axis=1)
    keep = np.concatenate([np.zeros((count, 2)), np.eye(count)], axis=1)
    apart = (np.vstack([last, keep]), np.zeros(1 + count))
    out = np.concatenate([[[-1.0]], np.full((1, count), 2.0**-9)], axis=1)
    file = layers(first, *blocks, apart, (out, [0.5]), dtype=dtype)
    return Trap(file, wide(0.0, read), wide(1.0, read), (1.0, 0.0, 0.0, 0.0), 0.0, -(2.0**20))


def branches(dtype: Any) -> Trap:
    """y = (relu(w x) + x) - relu(w x) - 1/2: x is lost in the first sum."""
    w = 2.0**60 if dtype is f64 else 2.0**30
    nodes = [
        ("Mul", ("x", "w"), "big"),
        ("Relu", ("big",), "a"),
        ("Add", ("a", "x"), "sum"),
        ("Sub", ("sum", "a"), "back"),
        ("Sub", ("half", "back"), "y"),
    ]
    file = net(nodes, {"w": [[w]], "half": [[0.5]]}, 1, dtype)
    return Trap(file, (0.25,), (1.0,), (1.0,), 0.0, -(2.0**14))


def order_of_weights(dtype: Any) -> Trap:
    """w x0 + x1 - w x2 at (1, 1, 1) is 1; y = 1/2 - that."""
    w = 1e16 if dtype is f64 else 2.0**26
    hidden = ([[w, 1.0, -w], [-w, 1.0, w]], [0.0, 0.0])
    file = layers(hidden, ([[-1.0, 0.0]], [0.5]), dtype=dtype)
    return Trap(file, wide(1.0, 3), wide(1.0, 3), wide(1.0, 3), 0.0, -1e3)


def order_of_biases(dtype: Any) -> Trap:
    """((x + w) + 1) - w, the 1 being lost, then relu: 1/2 - (x + 1) is at most -1/2 in the reals."""
    w = 1e17 if dtype is f64 else 2.0**27
    nodes = [
        ("Add", ("x", "w"), "a"),
        ("Add", ("a", "one"), "b"),
        ("Sub", ("b", "w"), "c"),
        ("Relu", ("c",), "d"),
        ("Sub", ("half", "d"), "y"),
    ]
    file = net(nodes, {"w": [[w]], "one": [[1.0]], "half": [[0.5]]}, 1, dtype)
    return Trap(file, (0.0,), (0.0,), (0.0,), 0.0, -1e4)


def layer_of_ones(dtype: Any) -> Trap:
    """One large number and 2^12 small ones, each of which is lost when it is added to the large one alone."""
    count, w = 4096, (2.0**54 if dtype is f64 else 2.0**25)
    weight = np.concatenate([[w], np.ones(count), [-w]])[None]
    file = layers((weight, [0.0]), ([[-1.0]], [2048.0]), dtype=dtype)
    ones = wide(1.0, count + 2)
    return Trap(file, ones, ones, ones, 0.0, None)


def overflow(dtype: Any) -> Trap:
    """(w relu(w x) - w relu(w x)) + 1/2 - x: inf - inf in floats, 1/2 - x in the reals."""
    w = 1e300 if dtype is f64 else 1e38
    nodes = [
        ("Mul", ("x", "w"), "a"),
        ("Relu", ("a",), "b"),
        ("Mul", ("b", "w"), "c"),
        ("Sub", ("c", "c"), "d"),
        ("Sub", ("half", "x"), "e"),
        ("Add", ("d", "e"), "y"),
    ]
    return Trap(net(nodes, {"w": [[w]], "half": [[0.5]]}, 1, dtype), (0.5,), (1.0,), (1.0,), 0.0)


def overflow_that_returns(dtype: Any) -> Trap:
    """relu(v - w relu(w x)) is 0 where -inf goes in, and v / w^2 sized above: y = relu(x w w - v) / w / w, scaled."""
    w = 1e300 if dtype is f64 else 1e38
    file = layers(([[w]], [0.0]), ([[w]], [0.0]), ([[1 / w]], [0.0]), ([[-1 / w]], [0.25]), dtype=dtype)
    return Trap(file, (0.0,), (1.0,), (1.0,), 0.0)


def subnormal(dtype: Any) -> Trap:
    """x times the smallest number is lost; times two large ones it is x again."""
    info = np.finfo(dtype)
    tiny, back = float(info.smallest_subnormal), 2.0 ** (60 if dtype is f32 else 1000)
    rest = float(2.0 ** (-np.log2(tiny) - np.log2(back)))
    file = layers(([[tiny]], [0.0]), ([[back]], [0.0]), ([[-rest]], [0.25]), dtype=dtype)
    return Trap(file, (0.25,), (0.5,), (0.5,), 0.0)


def no_float32(dtype: Any) -> Trap:
    """2^30 (x - float32(0.1)) + 1 at x = 0.1, which is no float32: -0.6 in the reals, 1 for a runtime."""
    near = float(np.float32(0.1))
    file = layers(([[2.0**30], [-(2.0**30)]], [-near * 2.0**30, near * 2.0**30]), ([[1.0, -1.0]], [1.0]), dtype=dtype)
    return Trap(file, (0.1,), (0.1,), (0.1,), 0.0, -1.0)


def concave(scale: float, dtype: Any) -> tuple[bytes, tuple[float, ...], Fraction]:
    """-(a sum of ReLUs) of 3 inputs on [0, 1]^3: its least value is at a corner, which rationals find."""
    rng = np.random.default_rng(11)
    weight, bias = rng.normal(size=(6, 3)), 0.3 * rng.normal(size=6)
    file = layers((weight, bias), (-scale * np.abs(rng.normal(size=(1, 6))), [0.0]), dtype=dtype)
    corners = list(itertools.product((0.0, 1.0), repeat=3))
    values = [exact_run(file, c)[0] for c in corners]
    best = min(range(8), key=lambda k: values[k])
    return file, corners[best], values[best]


def hair(relative: float, scale: float, dtype: Any) -> Trap:
    """A piecewise linear network, and an offset that its least value misses by a hair."""
    file, x, least = concave(scale, dtype)
    offset = float(least * (1 - Fraction(relative)))  # least < 0
    while Fraction(offset) < least:
        offset = float(np.nextafter(offset, np.inf))
    return Trap(file, wide(0.0, 3), wide(1.0, 3), x, offset, float(least) * (1 + 1e-3))


TRAPS: dict[str, Callable[[], Trap]] = {
    f"{make.__name__}-{np.dtype(dtype).name}": lambda make=make, dtype=dtype: make(dtype)
    for make in (
        switch,
        split_switch,
        hidden_switch,
        branches,
        order_of_weights,
        order_of_biases,
        layer_of_ones,
        overflow,
        overflow_that_returns,
        subnormal,
        no_float32,
    )
    for dtype in (f32, f64)
}
TRAPS |= {
    f"hair-{relative:g}-of-{scale:g}-{np.dtype(dtype).name}": lambda r=relative, s=scale, d=dtype: hair(r, s, d)
    for relative, scale, dtype in (
        (1e-9, 1.0, f64),
        (1e-12, 1.0, f32),
        (1e-16, 1.0, f64),
        (0.0, 1.0, f32),
        (1e-3, 1e-10, f64),
        (1e-9, 1e-10, f32),
        (1e-9, 1e-40, f64),
        (1e-9, 1e12, f64),
    )
}


@cache
def trap(name: str) -> Trap:
    return TRAPS[name]()


@cache
def model(name: str) -> Any:
    return load_model(trap(name).file, check=False)


def claimed(name: str, offset: float) -> Property:
    """No y <= offset over the trap's box, as a VNN-LIB file says it."""
    found = trap(name)
    text = vnnlib(found.lower, found.upper, [([1.0], offset)])
    return parse_property(text, model(name).graph.input_shape, 1)


def answer(name: str, offset: float, method: str, **how: Any) -> Outcome:
    settings = Settings(
        method=method, attack=False, device="cpu", timeout=how.pop("timeout", SECONDS.get(method, 5.0)), **how
    )
    (outcome,) = decide(model(name), [claimed(name, offset)], settings)
    return outcome


def proofs(file: bytes, lower: Any, upper: Any, offset: float) -> Iterator[bytes]:
    """Certificates by hand: every mode, unit 0 split at 0, the input split where the box is widest, 16 parts."""
    units = read_network(file, Before(), "kept", None).units
    crown = {"do": "crown", "units": None, "places": None, "adaptive": True}
    cases = [
        {"steps": [crown, {"do": "close", "polytopes": [0], "rows": [0], "slopes": mode}], "trees": []}
        for mode in ("interval", "adaptive", "parallel")
    ]
    sides = [np.asarray(side, dtype=np.float64) for side in (lower, upper)]
    cases += [{"steps": [crown], "trees": [tree(*at)]} for at in _splits(sides, units)]
    for case in cases:
        yield by_hand(file, lower, upper, offset, case)


def by_hand(file: bytes, lower: Any, upper: Any, offset: float, proof: dict[str, Any]) -> bytes:
    """The certificate that y <= offset is not reached from the box."""
    network = read_network(file, Before(), "kept", None)
    polytope = {"coeff": np.ones((1, 1)), "offset": np.array([offset])}
    sides = [np.asarray(side, dtype=np.float64) for side in (lower, upper)]
    return packed(
        {
            "format": "certify.certificate",
            "version": 2,
            "model": {"sha256": fingerprint(file), "mean": None, "std": None, "layout": None, "softmax": "kept"},
            "property": {
                "kind": "cases",
                "sha256": None,
                "cases": [{"lower": sides[0], "upper": sides[1], "polytopes": [polytope]}],
            },
            "units": [network.nodes[u].size for u in network.units],
            "cases": [proof],
        }
    )


def _splits(sides: Any, units: Any) -> Iterator[tuple[int, int, list[float]]]:
    if units:
        yield 0, 0, [0.0]
    where = int(np.argmax(sides[1] - sides[0]))
    if sides[0][where] < sides[1][where]:
        yield -1, where, np.linspace(sides[0][where], sides[1][where], 17)[1:-1].tolist()


def tree(unit: int, place: int, cuts: list[float]) -> dict[str, Any]:
    """A comb: at every cut the lower part is a leaf."""
    count, inner = 2 * len(cuts) + 1, np.arange(len(cuts)) * 2
    inner = np.where(inner > 0, inner, 0)
    split, where, cut, child = (np.zeros(count, dtype=kind) for kind in (np.int32, np.int32, np.float64, np.int32))
    split[:] = -2
    split[inner], where[inner], cut[inner], child[inner] = unit, place, cuts, inner + 1
    leaves = np.flatnonzero(split == -2).astype(np.int32)
    none = np.zeros(0, dtype=np.int32)
    return {
        "polytopes": [0],
        "unit": split,
        "place": where,
        "cut": cut,
        "child": child,
        "renew": np.full(count, unit == -1),
        "entry_node": leaves,
        "entry_polytope": np.zeros(len(leaves), dtype=np.int32),
        "entry_mix": np.ones((len(leaves), 1), dtype=np.float32),
        "slots": None,
        "entry_slopes": None,
        **dict.fromkeys(("multiplier_entry", "multiplier_unit", "multiplier_place"), none),
        "multiplier": none.astype(np.float32),
        "planes": None,
        "sharpen_entry": none,
        "sharpen_plane": none,
        "sharpen_beta": none.astype(np.float32),
    }


def accepted(data: bytes, file: bytes, **how: Any) -> bool:
    try:
        check(data, file, **how)
    except Rejected:
        return False
    return True


@pytest.mark.parametrize("name", TRAPS)
def test_the_trap_is_one(name: str) -> None:
    """At x, a point of the box, the exact output is unsafe."""
    found = trap(name)
    assert all(a <= v <= b for a, v, b in zip(found.lower, found.x, found.upper, strict=True))
    assert exact_run(found.file, found.x)[0] <= Fraction(found.offset)


@pytest.mark.parametrize("name", [n for n in TRAPS if "hair" not in n])
def test_floats_fall_for_it(name: str) -> None:
    """In the network's own type, in some order of the sums, the output at x looks safe or is no number."""
    found, dtype = trap(name), np.float32 if "float32" in name else np.float64
    if name == "no_float32-float64":
        dtype = np.float32
    seen = [y[0] for y in float_runs(found.file, found.x, dtype)]
    assert any(not y <= found.offset for y in seen), seen


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", TRAPS)
def test_no_method_proves_it(name: str, method: str) -> None:
    found = answer(name, trap(name).offset, method)
    assert found.verdict is not Verdict.VERIFIED
    assert not found.lower > 0


@pytest.mark.parametrize("name", TRAPS)
def test_no_certificate_by_hand_is_accepted(name: str) -> None:
    """In floats, in fractions, and at the level of float32."""
    found = trap(name)
    exact = len(found.lower) < 100
    for data in proofs(found.file, found.lower, found.upper, found.offset):
        for how in ({}, {"arithmetic": "float32"}, {"exact": True}):
            assert not accepted(data, found.file, **how) or not (exact or "exact" not in how)


@pytest.mark.parametrize("name", [n for n in TRAPS if trap(n).safe is not None])
def test_what_is_true_with_room_is_proved(name: str) -> None:
    """... and the checker accepts it, so that the refusals above are not for the network's form."""
    safe = trap(name).safe
    assert safe is not None
    found = answer(name, safe, "auto", check=True, timeout=20.0)
    assert found.verdict is Verdict.VERIFIED, found.reason
    assert found.checked in ("real", "float32")


# What holds in the reals, and not for what runs in float32.


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
    found = answer(
        "hair-0-of-1-float32", float(least) * (1 + 1e-3), "auto", check=True, arithmetic="float32", timeout=20
    )
    assert (found.verdict, found.checked) == (Verdict.VERIFIED, "float32"), found.reason


def test_an_overflow_in_sharpening_is_no_empty_node() -> None:
    """1e300 beta x is inf, and 0 inf no number: neither part of a split may then count as empty.

    y = 1e300 relu(relu(x - 1)) - 1 is -1 at x = 1/2; the root sharpens what it splits by a beta of 3e38.
    """
    file = layers(([[1.0]], [-1.0]), ([[1e300]], [0.0]), ([[1.0]], [-1.0]))
    assert exact_run(file, (0.5,))[0] == -1
    root, none = np.zeros(1, dtype=np.int32), np.ones(1, dtype=np.int32)
    for beta in (3e8, 3e38):
        for sign in (none, -none):
            grown = tree(0, 0, [0.0]) | {
                "entry_node": root,
                "entry_polytope": root,
                "entry_mix": np.ones((1, 1), dtype=np.float32),
                "planes": {"unit": root, "place": root, "sign": sign},
                "sharpen_entry": root,
                "sharpen_plane": root,
                "sharpen_beta": np.array([beta], dtype=np.float32),
            }
            case = {"steps": [{"do": "crown", "units": None, "places": None, "adaptive": True}], "trees": [grown]}
            data = by_hand(file, (0.5,), (4.0,), 0.0, case)
            assert not accepted(data, file)
            assert not accepted(data, file, exact=True)


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
