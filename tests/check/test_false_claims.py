"""Files, models and properties that are not what a certificate is about, and false claims: none is accepted.

A changed choice that is as good is no damage; so a last law takes false claims, and any choices at all for a proof.
"""

from __future__ import annotations

import copy
import hashlib
import io
import re
import zipfile
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
import pytest
from check_cases import packed
from onnx_exact import exact_run, vnnlib
from taut import (
    BASES,
    EXCLUDED,
    LOWER,
    OPEN,
    UPPER,
    Header,
    certificate,
    mlp,
    searched,
    swap_children,
    verdict,
)

from certify.check.checker import check
from certify.check.errors import Rejected
from certify.check.read_onnx import fingerprint
from certify.frontends.onnx_import import load_model
from certify.frontends.vnn_spec import parse_property


def rezipped(data: bytes, change: Callable[[dict[str, bytes]], list[tuple[str, bytes]]]) -> bytes:
    source = zipfile.ZipFile(io.BytesIO(data))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        for name, content in change({n: source.read(n) for n in source.namelist()}):
            made.writestr(name, content)
    return file.getvalue()


def npy(array: Any, **how: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **how)
    return file.getvalue()


def replaced(name: str, content: bytes) -> Callable[[bytes], bytes]:
    return lambda data: rezipped(data, lambda old: [*{**old, name: content}.items()])


def header_as_floats(data: bytes) -> bytes:
    text = np.load(io.BytesIO(data))["header"].astype(np.float64)
    return replaced("header.npy", npy(text))(data)


FILES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "half of it": (lambda d: d[: len(d) // 2], "no .npz archive"),
    "one byte less": (lambda d: d[:-1], "no .npz archive"),
    "nothing": (lambda d: b"", "no .npz archive"),
    "a byte changed": (lambda d: d[:500] + bytes([d[500] ^ 1]) + d[501:], "damaged|no .npz archive"),
    "an entry twice": (lambda d: rezipped(d, lambda old: [*old.items(), ("a0.npy", old["a1.npy"])]), "of one name"),
    "an entry more": (replaced("more.npy", npy(np.zeros(1))), "nothing refers to"),
    "an entry less": (lambda d: rezipped(d, lambda old: [*old.items()][:-1]), "has no entry"),
    "an entry of another kind": (replaced("a0.txt", b"1"), "other than .npy"),
    "an entry cut short": (lambda d: rezipped(d, lambda o: [*{**o, "a0.npy": o["a0.npy"][:-8]}.items()]), "damaged"),
    "a pickle": (replaced("a0.npy", npy(np.array([{}], dtype=object), allow_pickle=True)), "damaged"),
    "complex numbers": (replaced("a0.npy", npy(np.zeros(20, dtype=complex))), "damaged"),
    "a header in floats": (header_as_floats, "header"),
    "a header that is not JSON": (replaced("header.npy", npy(np.frombuffer(b"{", np.uint8))), "not JSON"),
    "a center of another length": (replaced("a0.npy", npy(np.zeros(19))), "19 inputs"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_rejected(name: str) -> None:
    header, file, _ = searched()
    change, reason = FILES[name]
    data = packed(header)
    check(data, file)
    with pytest.raises(Rejected, match=reason):
        check(change(data), file)


def reweighted(file: bytes, name: str, change: Callable[[Any], Any]) -> bytes:
    """The model with one stored tensor changed."""
    import onnx
    from onnx import numpy_helper

    proto = onnx.ModelProto.FromString(file)
    for number, tensor in enumerate(proto.graph.initializer):
        if tensor.name == name:
            array = change(numpy_helper.to_array(tensor).copy()).astype(np.float32)
            proto.graph.initializer[number].CopyFrom(numpy_helper.from_array(array, name))
    made: bytes = proto.SerializeToString()
    return made


@pytest.mark.parametrize("base", BASES)
def test_another_model_is_rejected(base: str) -> None:
    """By its hash; and where that is forged, by its bounds: a bias that is a little worse does not do."""
    header, file, _ = BASES[base]()
    one = reweighted(file, "w1", lambda w: w + (np.arange(w.size).reshape(w.shape) == 0) * np.float32(1e-3))
    error = verdict(header, one)
    assert error is not None
    assert "about another model" in error.reason
    if base == "split":
        other = reweighted(file, "w2", lambda w: -w)
    else:
        label = header["property"]["label"]
        other = reweighted(file, "b2", lambda b: b - (np.arange(b.size) == label) * np.float32(1e-4))
    forged = copy.deepcopy(header)
    forged["model"]["sha256"] = fingerprint(other)
    error = verdict(forged, other)
    assert error is not None
    assert re.search(f"{OPEN}|{EXCLUDED}", error.reason), error.reason


# The VNN-LIB file.

SPEC = vnnlib(LOWER, UPPER, [([1.0, 0.0], -2.0), ([0.0, -1.0], -2.0)], [([0.0, 1.0], -9.0)])
SPECS: dict[str, tuple[Callable[[str], str], str]] = {
    "a wider box": (lambda s: s.replace("(<= X_1 0.5)", "(<= X_1 0.50001)"), "not covered|cover"),
    "a larger offset": (lambda s: s.replace("(<= Y_1 -9.0)", "(<= Y_1 -8.9)"), "not covered|cover"),
    "a row less": (lambda s: s.replace(" (>= Y_1 2.0)", ""), "not covered|cover"),
    "another direction": (lambda s: s.replace("(<= Y_1 -9.0)", "(>= Y_1 -9.0)"), "not covered|cover"),
    "another output": (lambda s: s.replace("(<= Y_1 -9.0)", "(<= Y_0 -9.0)"), "not covered|cover"),
    "another input": (lambda s: s.replace("(>= X_0 -1.0)", "(>= X_0 -1.5)"), "not covered|cover"),
    "no end": (lambda s: s[:-3], "not closed"),
}


@cache
def specified() -> tuple[Header, bytes]:
    file = mlp(7, 3, 10, 10, 2)
    return certificate(file, parse_property(SPEC, (3,), 2), "auto"), file


@pytest.mark.parametrize("name", SPECS)
def test_a_certificate_of_less_than_the_file_asks_is_rejected(name: str) -> None:
    """With the hash patched to match, so that the sets are compared."""
    header, file = specified()
    assert verdict(header, file, spec=SPEC.encode()) is None
    change, reason = SPECS[name]
    asked = change(SPEC)
    assert asked != SPEC
    made = copy.deepcopy(header)
    made["property"]["sha256"] = hashlib.sha256(asked.encode()).hexdigest()
    with pytest.raises(Rejected, match=reason):
        check(packed(made), file, spec=asked.encode())


@pytest.mark.parametrize("before", [{"mean": 0.0, "std": 1e30}, {"std": 2.0}])
def test_a_file_is_about_the_network_with_nothing_before_it(before: dict[str, object]) -> None:
    """A certificate about the network of x / 1e30 would prove what the file's own network violates."""
    header, file = specified()
    made = copy.deepcopy(header)
    made["model"].update(before)
    with pytest.raises(Rejected, match="with no mean, std or layout before it"):
        check(packed(made), file, spec=SPEC.encode())


# False claims.


def shaken(header: Header, rng: np.random.Generator) -> None:
    """Some of the choices of a proof changed at random, within their ranges."""
    case = header["cases"][0]
    for step in case["steps"]:
        if step["do"] == "close" and not isinstance(step["slopes"], str):
            for slopes in step["slopes"].values():
                slopes["lower"] = noisy(slopes["lower"], rng)
    for grown in case["trees"]:
        for name in ("entry_mix", "multiplier", "sharpen_beta", "cut"):
            grown[name] = noisy(grown[name], rng)
        for slopes in (grown["entry_slopes"] or {}).values():
            slopes["lower"] = noisy(slopes["lower"], rng)
        if rng.random() < 0.3:
            inner = np.flatnonzero(grown["unit"] != -2)
            if len(inner):
                swap_children(grown, int(rng.choice(inner)))


def noisy(values: Any, rng: np.random.Generator) -> Any:
    """A share of the numbers scaled by 0 to 10^3, of either sign where some are negative; bytes anew."""
    hit = rng.random(values.shape) < rng.choice([0.0, 0.1, 1.0])
    if values.dtype == np.uint8:
        return np.where(hit, rng.integers(0, 256, values.shape), values).astype(np.uint8)
    factor = rng.choice([0.0, 0.5, 2.0, 1e3], values.shape)
    factor = factor * (rng.choice([-1.0, 1.0], values.shape) if (values < 0).any() else 1.0)
    return np.where(hit, values * factor, values).astype(values.dtype)


@pytest.mark.parametrize("base", ["bab", "mip", "split"])
def test_no_choice_proves_a_false_claim(base: str) -> None:
    """A point of the set is unsafe, which rationals say; no certificate about it is accepted."""
    header, file, _ = BASES[base]()
    rng, false = np.random.default_rng(3), copy.deepcopy(header)
    stated = false["property"]
    if base == "split":
        points = rng.uniform(LOWER, UPPER, (500, 3))
        y = load_model(file).graph(points)
        margins = [(y @ p["coeff"].T - p["offset"]).max(axis=1) for p in stated["cases"][0]["polytopes"]]
        best = int(np.argmin(np.min(margins, axis=0)))
        rise = float(np.min(margins, axis=0)[best]) + 1e-9
        for polytope in stated["cases"][0]["polytopes"]:
            polytope["offset"] = polytope["offset"] + rise
        exact = exact_run(file, points[best])
        rows = [
            all(c @ exact <= d for c, d in zip(p["coeff"].astype(object), p["offset"], strict=True))
            for p in stated["cases"][0]["polytopes"]
        ]
        assert any(rows)
    else:
        center, eps = stated["center"], Fraction(stated["eps"])
        found = None
        while found is None:
            eps = eps * Fraction(11, 10)
            signs = rng.choice([-1.0, 1.0], (2000, len(center)))
            points = np.clip(center + float(eps) * (1 - 1e-9) * signs, 0, 1)
            y = load_model(file).graph(points)
            wrong = np.flatnonzero(np.argmax(y, axis=1) != stated["label"])
            found = points[wrong[0]] if len(wrong) else None
        stated["eps"] = str(eps)
        exact = exact_run(file, found)
        assert max(exact) > exact[stated["label"]]
    for _ in range(60):
        made = copy.deepcopy(false)
        shaken(made, rng)
        assert verdict(made, file) is not None


def test_nothing_is_accepted_where_floats_are_flushed_to_zero() -> None:
    """A process whose subnormals are gone (torch can switch them off) computes errors that may be too small."""
    torch = pytest.importorskip("torch")
    header, file, _ = BASES["l2"]()
    assert verdict(header, file) is None
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormals")
    try:
        assert "does not round as IEEE 754 says" in str(verdict(header, file))
    finally:
        torch.set_flush_denormal(False)
    assert verdict(header, file) is None
