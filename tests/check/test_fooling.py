"""Networks made to fool arithmetic in floats (tests/support/traps.py): what is false in the reals is never proved.

No network is trained; each is small enough that rationals decide, and every test first has them say so. Attacks are
off and the import is not compared with onnxruntime, so that the provers are judged alone -- without the checker
first, so that no bug of theirs hides behind it -- and then the checker, on certificates written by hand.
"""

from __future__ import annotations

from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import pytest
from onnx_exact import exact_run, float_runs, layers, vnnlib
from proofs_by_hand import accepted, by_hand, proofs, tree
from traps import TRAPS, trap

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
