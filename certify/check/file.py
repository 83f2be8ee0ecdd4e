"""The bytes of a certificate -> certify.check.content, all validated that can be without the network.

After this, a number is finite, a slope is in range, an index points into what the file itself states (`units`, the
property, a tree's nodes and entries), and a tree's nodes are a tree. What is left for others: that `units` and the
property are the network's.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Any, Literal, cast

import numpy as np

from certify.check.archive import (
    Archive,
    a_list,
    choice,
    fields,
    integer,
    named,
    number,
    parse,
    sha256_of,
    short,
    unit_name,
)
from certify.check.content import (
    INPUT,
    NOT_SPLIT,
    Ball,
    Before,
    Case,
    Cases,
    Certificate,
    Close,
    Crown,
    Index,
    Mode,
    Polytope,
    Proof,
    Refine,
    Slopes,
    Step,
    Tree,
)
from certify.check.errors import Rejected, Unreadable
from certify.check.place import Place

FORMAT, VERSION = "certify.certificate", 2
MODES = ("interval", "adaptive", "parallel")
DECIMAL = re.compile(r"\d{1,400}(\.\d{1,400})?([eE][+-]?\d{1,3})?(/\d{1,400})?", re.ASCII)


def read_certificate(data: bytes) -> Certificate:
    """The certificate in the bytes; Unreadable where they are none, Rejected where it breaks the format."""
    file = Archive(data)
    text = file.array("header", "header", "s", (None,), raw=True)
    found = fields(parse(text.tobytes()), "header", "format", "version", "model", "property", "units", "cases")
    if found["format"] != FORMAT:
        raise Unreadable(f"header: format is {short(found['format'])}, not {FORMAT!r}")
    if type(found["version"]) is not int or found["version"] != VERSION:
        raise Rejected(f"header: version {short(found['version'])} is not known; this checker reads version {VERSION}")
    sha256, before, softmax = _model(found["model"])
    stated = _property(file, found["property"])
    if softmax == "dropped" and not isinstance(stated, Ball):
        raise Rejected("model: softmax is dropped, which only a property of the kind 'ball' allows")
    units = tuple(integer(n, f"units[{i}]", 0) for i, n in enumerate(a_list(found["units"], "units")))
    proofs = a_list(found["cases"], "cases")
    if isinstance(stated, Ball):
        rows, inputs = [(1,) * (stated.classes - 1)], stated.center.size
    else:
        rows, inputs = [tuple(len(p.offset) for p in c.polytopes) for c in stated.cases], stated.cases[0].lower.size
    if len(proofs) != len(rows):
        raise Rejected(f"cases: {len(proofs)} proofs for {len(rows)} cases of the property")
    cases = tuple(
        _proof(Place(file, units, inputs, r), p, f"cases[{i}]")
        for i, (p, r) in enumerate(zip(proofs, rows, strict=True))
    )
    if file.unread:
        raise Rejected(f"entries that nothing refers to: {short(sorted(file.unread))}")
    return Certificate(sha256, before, softmax, stated, units, cases)


def _model(value: Any) -> tuple[str, Before, Literal["dropped", "kept"]]:
    found = fields(value, "model", "sha256", "mean", "std", "layout", "softmax")

    def numbers(name: str) -> float | tuple[float, ...] | None:
        given = found[name]
        if isinstance(given, list):
            return tuple(number(v, f"model.{name}[{i}]") for i, v in enumerate(given))
        return None if given is None else number(given, f"model.{name}")

    layout = choice(found["layout"], "model.layout", (None, "nhwc"))
    softmax = choice(found["softmax"], "model.softmax", ("dropped", "kept"))
    before = Before(numbers("mean"), numbers("std"), cast(Literal["nhwc"] | None, layout))
    return sha256_of(found["sha256"], "model.sha256"), before, cast(Literal["dropped", "kept"], softmax)


def _property(file: Archive, value: Any) -> Ball | Cases:
    kind = value.get("kind") if isinstance(value, dict) else None
    if choice(kind, "property.kind", ("ball", "cases")) == "ball":
        return _ball(file, value)
    found = fields(value, "property", "kind", "cases", optional=("sha256",))
    sha256 = None if found["sha256"] is None else sha256_of(found["sha256"], "property.sha256")
    cases = tuple(
        _case(file, c, f"property.cases[{i}]") for i, c in enumerate(a_list(found["cases"], "property.cases"))
    )
    if not cases or len({(c.lower.size, p.coeff.shape[1]) for c in cases for p in c.polytopes}) != 1:
        raise Rejected("property.cases: none, or their sizes differ")
    return Cases(sha256, cases)


def _ball(file: Archive, value: Any) -> Ball:
    names = ("kind", "center", "norm", "eps", "label", "classes")
    found = fields(value, "property", *names, optional=("low", "high"))
    eps = found["eps"]
    if not isinstance(eps, str) or not DECIMAL.fullmatch(eps) or ("/" in eps and re.search(r"[.eE]", eps)):
        raise Rejected(f"property.eps: {short(eps)} is not a decimal or fraction, not negative, in quotes")
    if "/" in eps and not int(eps.split("/")[1]):
        raise Rejected(f"property.eps: {short(eps)} divides by 0")
    low = -math.inf if found["low"] is None else number(found["low"], "property.low")
    high = math.inf if found["high"] is None else number(found["high"], "property.high")
    classes = integer(found["classes"], "property.classes", 2, 1 << 24)
    return Ball(
        center=file.array(found["center"], "property.center", "f", None),
        norm=cast(Literal["linf", "l2", "l1"], choice(found["norm"], "property.norm", ("linf", "l2", "l1"))),
        eps=Fraction(eps),
        low=low,
        high=high,
        label=integer(found["label"], "property.label", 0, classes),
        classes=classes,
    )


def _case(file: Archive, value: Any, place: str) -> Case:
    found = fields(value, place, "lower", "upper", "polytopes")
    lower = file.array(found["lower"], f"{place}.lower", "f", (None,))
    upper = file.array(found["upper"], f"{place}.upper", "f", lower.shape)
    if not (lower <= upper).all():
        raise Rejected(f"{place}: lower > upper at {int(np.argmax(lower > upper))}")
    polytopes = []
    for j, stated in enumerate(a_list(found["polytopes"], f"{place}.polytopes")):
        here = f"{place}.polytopes[{j}]"
        parts = fields(stated, here, "coeff", "offset")
        offset = file.array(parts["offset"], f"{here}.offset", "f", (None,))
        coeff = file.array(parts["coeff"], f"{here}.coeff", "f", (offset.size, None))
        if not offset.size:
            raise Rejected(f"{here}: no rows")
        polytopes.append(Polytope(coeff, offset))
    if not polytopes:
        raise Rejected(f"{place}: no polytopes")
    return Case(lower, upper, tuple(polytopes))


def _proof(at: Place, value: Any, place: str) -> Proof:
    found = fields(value, place, "steps", "trees")
    steps = tuple(_step(at, s, f"{place}.steps[{i}]") for i, s in enumerate(a_list(found["steps"], f"{place}.steps")))
    trees = tuple(_tree(at, t, f"{place}.trees[{i}]") for i, t in enumerate(a_list(found["trees"], f"{place}.trees")))
    return Proof(steps, trees)


def _step(at: Place, value: Any, place: str) -> Step:
    do = choice(value.get("do") if isinstance(value, dict) else None, f"{place}.do", ("crown", "slopes", "close"))
    count = len(at.units)
    if do == "crown":
        found = fields(value, place, "do", "adaptive", optional=("units", "places"))
        units = found["units"]
        if units is not None:
            units = tuple(integer(u, f"{place}.units", 0, count) for u in a_list(units, f"{place}.units"))
        places = found["places"]
        if places is not None:
            here = f"{place}.places"
            chosen = {unit_name(name, count, here): entry for name, entry in named(places, here).items()}
            places = {u: at.places(entry, f"{here}.{u}", u) for u, entry in chosen.items()}
        return Crown(units, places, choice(found["adaptive"], f"{place}.adaptive", (True, False)))
    if do == "slopes":
        lent = ("below_multipliers", "above_multipliers")
        found = fields(value, place, "do", "unit", "places", "below", "above", optional=lent)
        unit = integer(found["unit"], f"{place}.unit", 0, count)
        where = at.places(found["places"], f"{place}.places", unit)
        slopes = [at.slopes(found[s], f"{place}.{s}", lambda n: n in (1, where.size)) for s in ("below", "above")]
        multipliers = [at.multipliers(found[s], f"{place}.{s}", where.size) for s in lent]
        return Refine(unit, where, slopes[0], slopes[1], multipliers[0], multipliers[1])
    found = fields(value, place, "do", "polytopes", "rows", "slopes")
    polytopes = _polytopes(at, found["polytopes"], f"{place}.polytopes")
    rows = a_list(found["rows"], f"{place}.rows")
    if len(rows) != len(polytopes):
        raise Rejected(f"{place}.rows: {len(rows)} rows for {len(polytopes)} polytopes")
    picked = tuple(integer(r, f"{place}.rows", 0, at.rows[p]) for r, p in zip(rows, polytopes, strict=True))
    slopes = found["slopes"]
    if isinstance(slopes, str):
        return Close(polytopes, picked, cast(Mode, choice(slopes, f"{place}.slopes", MODES)))
    return Close(polytopes, picked, at.slopes(slopes, f"{place}.slopes", lambda n: n in (1, len(polytopes))))


def _polytopes(at: Place, value: Any, place: str) -> tuple[int, ...]:
    found = tuple(integer(p, place, 0, len(at.rows)) for p in a_list(value, place))
    if len(set(found)) != len(found):
        raise Rejected(f"{place}: a polytope stands twice")
    return found


ENTRIES = ("entry_node", "entry_polytope", "entry_mix")
MULTIPLIERS = ("multiplier_entry", "multiplier_unit", "multiplier_place", "multiplier")
SHARPEN = ("sharpen_entry", "sharpen_plane", "sharpen_beta")


def _tree(at: Place, value: Any, place: str) -> Tree:
    nodes = ("polytopes", "unit", "place", "cut", "child")
    names = (*nodes, *ENTRIES, *MULTIPLIERS, *SHARPEN)
    found = fields(value, place, *names, optional=("renew", "slots", "entry_slopes", "planes", "caps"))
    file, units = at.file, len(at.units)
    polytopes = _polytopes(at, found["polytopes"], f"{place}.polytopes")
    if not polytopes:
        raise Rejected(f"{place}.polytopes: none")
    unit = at.index(found["unit"], f"{place}.unit", None, NOT_SPLIT, units)
    count = unit.size
    where = file.array(found["place"], f"{place}.place", "i", (count,))
    at.within(unit[unit >= INPUT], where[unit >= INPUT], f"{place}.place")
    child = file.array(found["child"], f"{place}.child", "i", (count,))
    _is_tree(unit, child, f"{place}.child")
    entries, per_entry = _entries(at, found, place, count, polytopes)
    rows, planes = len(entries["entry_node"]), _planes(at, found["planes"], place)
    sharpen: dict[str, Any] = {
        "sharpen_entry": at.index(found["sharpen_entry"], f"{place}.sharpen_entry", None, 0, rows),
        "sharpen_plane": at.index(found["sharpen_plane"], f"{place}.sharpen_plane", None, 0, len(planes["plane_unit"])),
        "sharpen_beta": file.array(found["sharpen_beta"], f"{place}.sharpen_beta", "f", (None,)),
    }
    if len({len(v) for v in sharpen.values()}) != 1 or not (sharpen["sharpen_beta"] >= 0).all():
        raise Rejected(f"{place}.sharpen_beta: a negative number, or arrays of several lengths")
    if len(sharpen["sharpen_entry"]) and len(polytopes) != 1:
        raise Rejected(f"{place}.sharpen_entry: sharpening in a tree of {len(polytopes)} polytopes")
    renew = np.zeros(count, dtype=np.bool_)
    if found["renew"] is not None:
        renew = file.array(found["renew"], f"{place}.renew", "b", (count,))
    caps = _caps(at, found["caps"], place, rows)
    if len(caps["cap_entry"]) and renew.any():
        raise Rejected(f"{place}.caps: in a tree that renews nodes")
    return Tree(
        polytopes=polytopes,
        unit=unit,
        place=where,
        cut=file.array(found["cut"], f"{place}.cut", "f", (count,)),
        child=child,
        renew=renew,
        **entries,
        entry_slopes=per_entry,
        **_multipliers(at, found, place, rows),
        **planes,
        **sharpen,
        **caps,
    )


def _is_tree(unit: Index, child: Index, place: str) -> None:
    """Node 0 is the root and every other one is a child of exactly one node, which comes before it."""
    split = np.flatnonzero(unit != NOT_SPLIT)
    if not unit.size or child[unit == NOT_SPLIT].any():
        raise Rejected(f"{place}: no root, or a child of a node that is not split")
    first = child[split]
    if not ((first > split) & (first < unit.size)).all():
        raise Rejected(f"{place}: a child before its parent, or outside of the tree")
    if not np.array_equal(np.sort(np.concatenate([first, first + 1])), np.arange(1, unit.size)):
        raise Rejected(f"{place}: a node that is no child, or the child of two")


def _entries(
    at: Place, found: dict[str, Any], place: str, nodes: int, polytopes: tuple[int, ...]
) -> tuple[dict[str, Any], Slopes | None]:
    file = at.file
    node = at.index(found["entry_node"], f"{place}.entry_node", None, 0, nodes)
    if (np.diff(node) < 0).any():
        raise Rejected(f"{place}.entry_node: not ascending")
    polytope = file.array(found["entry_polytope"], f"{place}.entry_polytope", "i", node.shape)
    if not np.isin(polytope, polytopes).all():
        raise Rejected(f"{place}.entry_polytope: a polytope that the tree does not have")
    widest = max(at.rows[p] for p in polytopes)
    mix = file.array(found["entry_mix"], f"{place}.entry_mix", "f", (node.size, widest))
    own = np.array(at.rows, dtype=np.int64)[polytope]
    if not (mix >= 0).all() or mix[np.arange(widest) >= own[:, None]].any():
        raise Rejected(f"{place}.entry_mix: a negative weight, or one of a row that the polytope does not have")
    entries = {"entry_node": node, "entry_polytope": polytope, "entry_mix": mix}
    slots, slopes = found["slots"], found["entry_slopes"]
    if slots is None and slopes is None:
        return entries, None
    where = fields(slots, f"{place}.slots", "at")["at"]
    if not isinstance(where, dict) or not isinstance(slopes, dict) or where.keys() != slopes.keys():
        raise Rejected(f"{place}.entry_slopes: not of the units of `slots`")
    per_entry: Slopes = {}
    for name, part in slopes.items():
        here = f"{place}.entry_slopes.{name}"
        unit = unit_name(name, len(at.units), here)
        places = at.places(where[name], f"{place}.slots.at.{name}", unit)
        parts = fields(part, here, "lower", optional=("upper",))
        per_entry[unit] = at.unit_slopes(places, parts, here, lambda n: n == node.size)
    return entries, per_entry


def _multipliers(at: Place, found: dict[str, Any], place: str, entries: int) -> dict[str, Any]:
    value = at.file.array(found["multiplier"], f"{place}.multiplier", "f", (None,))
    entry = at.index(found["multiplier_entry"], f"{place}.multiplier_entry", value.size, 0, entries)
    unit = at.index(found["multiplier_unit"], f"{place}.multiplier_unit", value.size, 0, len(at.units))
    where = at.file.array(found["multiplier_place"], f"{place}.multiplier_place", "i", value.shape)
    at.within(unit, where, f"{place}.multiplier_place")
    return dict(zip(MULTIPLIERS, (entry, unit, where, value), strict=True))


def _planes(at: Place, value: Any, place: str) -> dict[str, Any]:
    if value is None:
        none = np.zeros(0, dtype=np.int64)
        return {"plane_unit": none, "plane_place": none, "plane_sign": none}
    here = f"{place}.planes"
    found = fields(value, here, "unit", "place", "sign")
    unit = at.index(found["unit"], f"{here}.unit", None, 0, len(at.units))
    where = at.file.array(found["place"], f"{here}.place", "i", unit.shape)
    at.within(unit, where, f"{here}.place")
    sign = at.file.array(found["sign"], f"{here}.sign", "i", unit.shape)
    if not (np.abs(sign) == 1).all():
        raise Rejected(f"{here}.sign: other than 1 and -1")
    return {"plane_unit": unit, "plane_place": where, "plane_sign": sign}


def _caps(at: Place, value: Any, place: str, entries: int) -> dict[str, Any]:
    names = ("entry", "unit", "place", "multiplier", "share")
    if value is None:
        none = np.zeros(0, dtype=np.int64)
        found = (none, none, none, np.zeros(0), np.zeros((0, at.inputs), dtype=np.uint8))
    else:
        here = f"{place}.caps"
        stated = fields(value, here, *names)
        entry = at.index(stated["entry"], f"{here}.entry", None, 0, entries)
        unit = at.index(stated["unit"], f"{here}.unit", entry.size, 0, len(at.units))
        where = at.file.array(stated["place"], f"{here}.place", "i", entry.shape)
        at.within(unit, where, f"{here}.place")
        multiplier = at.file.array(stated["multiplier"], f"{here}.multiplier", "f", entry.shape)
        share = at.file.array(stated["share"], f"{here}.share", "s", (entry.size, at.inputs), raw=True)
        if not (multiplier >= 0).all() or share.dtype != np.uint8:
            raise Rejected(f"{here}: a negative multiplier, or shares that are not uint8")
        found = (entry, unit, where, multiplier, share)
    return {f"cap_{name}": array for name, array in zip(names, found, strict=True)}
