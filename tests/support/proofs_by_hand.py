"""Certificates written by hand, about one row y <= offset of a network of one output."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from check_cases import packed

from certify.check.checker import check
from certify.check.content import Before
from certify.check.errors import Rejected
from certify.check.read_onnx import fingerprint, read_network


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
