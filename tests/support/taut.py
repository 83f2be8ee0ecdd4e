"""Certificates of real searches, taut: raised until they only just hold, so that any choice for the worse is seen."""

from __future__ import annotations

import copy
import io
import itertools
import json
import re
from collections.abc import Callable
from fractions import Fraction
from functools import cache
from typing import Any

import numpy as np
from check_cases import packed
from onnx_exact import layers, vnnlib

from certify.check.checker import check
from certify.check.errors import NotExcluded, Rejected
from certify.frontends.onnx_import import load_model
from certify.frontends.vnn_spec import parse_property
from certify.pipeline import decide
from certify.property import Ball, Property
from certify.settings import Settings
from certify.verdict import Verdict

OPEN = r"node \d+ excludes not all"
EXCLUDED = r"polytope \d is not excluded"

Header = dict[str, Any]
Change = Callable[[Header], Any]


def mlp(seed: int, *widths: int) -> bytes:
    rng = np.random.default_rng(seed)
    pairs = itertools.pairwise(widths)
    return layers(
        *[(rng.standard_normal((b, a)) / np.sqrt(a) * 1.5, 0.3 * rng.standard_normal(b)) for a, b in pairs],
        dtype=np.float32,
    )


def unpacked(data: bytes) -> Header:
    """The header with the arrays themselves in the places of their names."""
    stored = np.load(io.BytesIO(data))
    header = json.loads(stored["header"].tobytes())

    def put(value: Any) -> Any:
        if isinstance(value, str) and re.fullmatch(r"a\d+", value):
            return stored[value]
        if isinstance(value, dict):
            return {k: put(v) for k, v in value.items()}
        return [put(v) for v in value] if isinstance(value, list) else value

    found: Header = put(header)
    return found


def verdict(header: Header, file: bytes, **how: Any) -> Rejected | None:
    try:
        check(packed(header), file, **how)
    except Rejected as error:
        return error
    return None


def certificate(file: bytes, prop: Property, method: str, **before: Any) -> Header:
    how = Settings(method=method, attack=False, check=True, certificates=True, device="cpu", timeout=300.0)
    (found,) = decide(load_model(file, **before), [prop], how)
    assert found.verdict is Verdict.VERIFIED, found.reason
    assert found.certificate is not None
    return unpacked(found.certificate)


def taut(header: Header, file: bytes, raised: Callable[[Header, Fraction], Header]) -> tuple[Header, int]:
    """The claim raised by bisection as far as the proof goes; the node that fails first then, its tree put first."""
    low, high, tree, node = Fraction(0), Fraction(1), 0, -1
    for _ in range(40):
        middle = (low + high) / 2
        error = verdict(raised(header, middle), file)
        if error is None:
            low = middle
        else:
            high = middle
            tree, node = (error.tree, error.nodes[0]) if isinstance(error, NotExcluded) else (0, -1)
    made = raised(header, low)
    trees = made["cases"][0]["trees"]
    made["cases"][0]["trees"] = [*trees[tree : tree + 1], *trees[:tree], *trees[tree + 1 :]]
    return made, node


def wider(header: Header, share: Fraction) -> Header:
    """A ball with a larger radius."""
    made = copy.deepcopy(header)
    eps = Fraction(header["property"]["eps"]) * (1 + share)
    made["property"]["eps"] = str(eps.limit_denominator(2**60))
    return made


def nearer(header: Header, share: Fraction) -> Header:
    """Unsafe polytopes with larger offsets."""
    made = copy.deepcopy(header)
    for case in made["property"]["cases"]:
        for polytope in case["polytopes"]:
            polytope["offset"] = polytope["offset"] + float(share)
    return made


def around(seed: int, eps: str, widths: tuple[int, ...], norm: str = "linf", **before: Any) -> tuple[bytes, Property]:
    """A random network and a ball about a random point."""
    file = mlp(seed, *widths)
    x = np.random.default_rng(seed).uniform(0.2, 0.8, widths[0]).astype(np.float32).astype(np.float64)
    label = int(np.argmax(load_model(file, **before).graph(x[None])))
    return file, Property.around(Ball(x, Fraction(eps), norm, 0.0, 1.0, label, widths[-1]))


@cache
def searched() -> tuple[Header, bytes, int]:
    """Branch and bound over neurons: splits, multipliers, sharpening."""
    file, prop = around(2, "13/256", (20, 30, 30, 3))
    header, node = taut(certificate(file, prop, "auto"), file, wider)
    grown = header["cases"][0]["trees"][0]
    assert len(grown["unit"]) > 10
    assert len(grown["multiplier"])
    assert len(grown["sharpen_beta"])
    return header, file, node


@cache
def programmed() -> tuple[Header, bytes, int]:
    """Branch and bound by linear programs: multipliers that are duals."""
    file, prop = around(1, "1319/15360", (20, 12, 12, 3))
    header, node = taut(certificate(file, prop, "mip"), file, wider)
    assert len(tree_of(header)["multiplier"])
    return header, file, node


@cache
def stepped() -> tuple[Header, bytes, int]:
    """alpha-CROWN: steps alone, with slopes; behind a normalisation."""
    before: dict[str, Any] = {"mean": 0.125, "std": 0.75}
    file, prop = around(2, "1/16", (20, 12, 12, 3), **before)
    header, _ = taut(certificate(file, prop, "alpha-crown", **before), file, wider)
    assert [s["do"] for s in header["cases"][0]["steps"]].count("slopes")
    return header, file, -1


@cache
def round_ball() -> tuple[Header, bytes, int]:
    """CROWN over an L2 ball."""
    file, prop = around(3, "1/8", (20, 12, 12, 3), "l2")
    header, _ = taut(certificate(file, prop, "crown"), file, wider)
    return header, file, -1


ROWS = [([1.0, 0.0], 0.0), ([0.0, -1.0], 0.0)]
LOWER, UPPER = (-1.0, -1.0, -1.0), (1.0, 0.5, 1.0)


@cache
def boxed() -> tuple[Header, bytes, int]:
    """Input splits: unsafe where y0 <= a and y1 >= b, or y1 <= c; bounds made anew in every part."""
    file = mlp(7, 3, 10, 10, 2)
    model = load_model(file)
    rng = np.random.default_rng(0)
    y = model.graph(rng.uniform(LOWER, UPPER, (4000, 3)))
    both = np.maximum(y[:, 0], -y[:, 1]).min()
    offset = float(both - 0.05 * np.ptp(y))
    least = float(y[:, 1].min() - 0.02 * np.ptp(y))
    text = vnnlib(LOWER, UPPER, [([1.0, 0.0], offset), ([0.0, -1.0], offset)], [([0.0, 1.0], least)])
    header = certificate(file, parse_property(text, (3,), 2), "auto")
    header, node = taut(header, file, nearer)
    (grown,) = header["cases"][0]["trees"]
    assert grown["renew"].any()
    return header, file, node


BASES = {"bab": searched, "mip": programmed, "alpha": stepped, "l2": round_ball, "split": boxed}


def tree_of(header: Header) -> dict[str, Any]:
    found: dict[str, Any] = header["cases"][0]["trees"][0]
    return found


def entries_of(header: Header, base: str) -> Any:
    """The entries at the node that fails first."""
    grown, node = tree_of(header), BASES[base]()[2]
    found = np.flatnonzero(grown["entry_node"] == node)
    assert len(found), "the node that fails first has an entry"
    return found


def keep_entries(grown: dict[str, Any], kept: Any) -> None:
    """The tree with these entries only, in this order."""
    number = np.full(len(grown["entry_node"]), -1)
    number[kept] = np.arange(len(kept))
    for name in ("entry_node", "entry_polytope", "entry_mix"):
        grown[name] = grown[name][kept]
    for slopes in (grown["entry_slopes"] or {}).values():
        for side in slopes:
            slopes[side] = None if slopes[side] is None else slopes[side][kept]
    for names in (
        ("multiplier_entry", "multiplier_unit", "multiplier_place", "multiplier"),
        ("sharpen_entry", "sharpen_plane", "sharpen_beta"),
    ):
        mine = number[grown[names[0]]] >= 0 if len(grown[names[0]]) else np.zeros(0, dtype=bool)
        for name in names:
            grown[name] = grown[name][mine]
        grown[names[0]] = number[grown[names[0]]].astype(np.int32)


def swap_children(grown: dict[str, Any], node: int) -> None:
    """What stood below one half now stands below the other."""
    a = grown["child"][node]
    order = np.arange(len(grown["unit"]))
    order[[a, a + 1]] = a + 1, a
    for name in ("unit", "place", "cut", "child"):
        grown[name] = grown[name][order]
    if grown["renew"] is not None:
        grown["renew"] = grown["renew"][order]
    grown["entry_node"] = order[grown["entry_node"]].astype(np.int32)
    kept = np.argsort(grown["entry_node"], kind="stable")
    keep_entries(grown, kept)


def parent(grown: dict[str, Any], node: int) -> int:
    inner = np.flatnonzero(grown["unit"] != -2)
    return int(inner[(grown["child"][inner] == node) | (grown["child"][inner] + 1 == node)][0])
