"""The bytes of a certificate -> certify.check.content, all validated that can be without the network.

After this, a number is finite, a slope is in range, an index points into what the file itself states (`units`, the
property, a tree's nodes and entries), and a tree's nodes are a tree. What is left for others: that `units` and the
property are the network's. The tables say what docs/certificate.md says of every array.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, cast

import numpy as np

from certify.check import archive
from certify.check.archive import Archive, Rule, Sizes, choice, fields, integer, items, matching, named, number, short
from certify.check.content import (
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
    UnitSlopes,
)
from certify.check.errors import Rejected, Unreadable

FORMAT, VERSION = "certify.certificate", 2
MODES = ("interval", "adaptive", "parallel")
SHA256 = r"[0-9a-f]{64}", "a SHA-256 in lower-case hexadecimal digits"
EPS = (
    r"\d{1,400}(\.\d{1,400})?([eE][+-]?\d{1,3})?|\d{1,400}/0*[1-9]\d{0,400}",
    "a decimal or fraction, not negative, in quotes",
)
UNIT = r"0|[1-9][0-9]{0,8}", "a unit"

HEADER = Rule("u", "B")
CENTER = Rule("f")
BOX = {"lower": Rule("f", "n"), "upper": Rule("f", "n")}
POLYTOPE = {"offset": Rule("f", "R"), "coeff": Rule("f", "Rm")}
PLACES = Rule("i", "U", 0, "unit")
SLOPES = {"lower": Rule("s", "SU", 0, 1), "upper": Rule("f", "SU", 0, 0.25)}
LENT = Rule("f", "KU")
TREE = {
    "unit": Rule("i", "N", NOT_SPLIT, "units"),
    "place": Rule("i", "N"),
    "cut": Rule("f", "N"),
    "child": Rule("i", "N"),
    "entry_node": Rule("i", "E", 0, "N"),
    "entry_polytope": Rule("i", "E", 0, "polytopes"),
    "entry_mix": Rule("f", "ER", 0),
    "multiplier_entry": Rule("i", "M", 0, "E"),
    "multiplier_unit": Rule("i", "M", 0, "units"),
    "multiplier_place": Rule("i", "M"),
    "multiplier": Rule("f", "M"),
    "sharpen_entry": Rule("i", "Q", 0, "E"),
    "sharpen_plane": Rule("i", "Q", 0, "P"),
    "sharpen_beta": Rule("f", "Q", 0),
}
RENEW = Rule("b", "N")
PLANES = {"unit": Rule("i", "P", 0, "units"), "place": Rule("i", "P"), "sign": Rule("i", "P", -1, 1)}
CAPS = {
    "entry": Rule("i", "K", 0, "E"),
    "unit": Rule("i", "K", 0, "units"),
    "place": Rule("i", "K"),
    "multiplier": Rule("f", "K", 0),
    "share": Rule("u", "Kn"),
}


def read_certificate(data: bytes) -> Certificate:
    """The certificate in the bytes; Unreadable where they are none, Rejected where it breaks the format."""
    file = Archive(data)
    header = archive.parse(file.array("header", "header", HEADER, {}).tobytes())
    found = fields(header, "header", "format", "version", "model", "property", "units", "cases")
    if found["format"] != FORMAT:
        raise Unreadable(f"header: format is {short(found['format'])}, not {FORMAT!r}")
    if type(found["version"]) is not int or found["version"] != VERSION:
        raise Rejected(f"header: version {short(found['version'])} is not known; this checker reads version {VERSION}")
    sha256, before, softmax = _model(found["model"])
    stated = _property(file, found["property"])
    if softmax == "dropped" and not isinstance(stated, Ball):
        raise Rejected("model: softmax is dropped, which only a property of the kind 'ball' allows")
    units = tuple(integer(n, place, 0) for n, place in items(found["units"], "units"))
    if isinstance(stated, Ball):
        rows, inputs = [(1,) * (stated.classes - 1)], stated.center.size
    else:
        rows, inputs = [tuple(len(p.offset) for p in c.polytopes) for c in stated.cases], stated.cases[0].lower.size
    proofs = items(found["cases"], "cases")
    if len(proofs) != len(rows):
        raise Rejected(f"cases: {len(proofs)} proofs for {len(rows)} cases of the property")
    cases = tuple(_Case(file, units, inputs, r).proof(*p) for p, r in zip(proofs, rows, strict=True))
    if file.unread:
        raise Rejected(f"entries that nothing refers to: {short(sorted(file.unread))}")
    return Certificate(sha256, before, softmax, stated, units, cases)


def _model(value: Any) -> tuple[str, Before, Literal["dropped", "kept"]]:
    found = fields(value, "model", "sha256", "mean", "std", "layout", "softmax")

    def numbers(name: str) -> float | tuple[float, ...] | None:
        given = found[name]
        if isinstance(given, list):
            return tuple(number(*item) for item in items(given, f"model.{name}"))
        return None if given is None else number(given, f"model.{name}")

    layout = choice(found["layout"], "model.layout", (None, "nhwc"))
    softmax = choice(found["softmax"], "model.softmax", ("dropped", "kept"))
    before = Before(numbers("mean"), numbers("std"), cast(Literal["nhwc"] | None, layout))
    return matching(found["sha256"], "model.sha256", *SHA256), before, cast(Literal["dropped", "kept"], softmax)


def _property(file: Archive, value: Any) -> Ball | Cases:
    if choice(named(value, "property").get("kind"), "property.kind", ("ball", "cases")) == "ball":
        return _ball(file, value)
    found = fields(value, "property", "kind", "cases", optional=("sha256",))
    sha256 = None if found["sha256"] is None else matching(found["sha256"], "property.sha256", *SHA256)
    sizes: Sizes = {}  # n, m: the same for all
    cases = tuple(_case(file, *item, sizes) for item in items(found["cases"], "property.cases"))
    if not cases:
        raise Rejected("property.cases: none")
    return Cases(sha256, cases)


def _ball(file: Archive, value: Any) -> Ball:
    needed = ("kind", "center", "norm", "eps", "label", "classes")
    found = fields(value, "property", *needed, optional=("low", "high"))
    low, high = (
        none if found[name] is None else number(found[name], f"property.{name}")
        for name, none in (("low", -math.inf), ("high", math.inf))
    )
    classes = integer(found["classes"], "property.classes", 2, 1 << 24)
    return Ball(
        center=file.array(found["center"], "property.center", CENTER, {}),
        norm=cast(Literal["linf", "l2", "l1"], choice(found["norm"], "property.norm", ("linf", "l2", "l1"))),
        eps=Fraction(matching(found["eps"], "property.eps", *EPS)),
        low=low,
        high=high,
        label=integer(found["label"], "property.label", 0, classes),
        classes=classes,
    )


def _case(file: Archive, value: Any, place: str, sizes: Sizes) -> Case:
    found = fields(value, place, *BOX, "polytopes")
    lower, upper = (file.array(found[name], f"{place}.{name}", rule, sizes) for name, rule in BOX.items())
    if not (lower <= upper).all():
        raise Rejected(f"{place}: lower > upper at {int(np.argmax(lower > upper))}")
    polytopes = []
    for stated, here in items(found["polytopes"], f"{place}.polytopes"):
        sizes.pop("R", None)
        polytopes.append(Polytope(**_arrays(file, fields(stated, here, *POLYTOPE), here, POLYTOPE, sizes)))
        if not sizes["R"]:
            raise Rejected(f"{here}: no rows")
    if not polytopes:
        raise Rejected(f"{place}: no polytopes")
    return Case(lower, upper, tuple(polytopes))


def _arrays(
    file: Archive, found: Mapping[str, Any], place: str, table: Mapping[str, Rule], sizes: Sizes
) -> dict[str, Any]:
    """The arrays that a table names."""
    return {name: file.array(found[name], f"{place}.{name}", rule, sizes) for name, rule in table.items()}


@dataclass(frozen=True)
class _Case:
    """Reads a case's proof. What its indices point into: the sizes of units and input, the rows of each polytope."""

    file: Archive
    units: tuple[int, ...]
    inputs: int
    rows: tuple[int, ...]

    def proof(self, value: Any, place: str) -> Proof:
        found = fields(value, place, "steps", "trees")
        steps = tuple(self.step(*item) for item in items(found["steps"], f"{place}.steps"))
        return Proof(steps, tuple(self.tree(*item) for item in items(found["trees"], f"{place}.trees")))

    def step(self, value: Any, place: str) -> Step:
        do = choice(named(value, place).get("do"), f"{place}.do", ("crown", "slopes", "close"))
        return {"crown": self.crown, "slopes": self.refine, "close": self.close}[do](value, place)

    def crown(self, value: Any, place: str) -> Step:
        found = fields(value, place, "do", "adaptive", optional=("units", "places"))
        units, places = found["units"], found["places"]
        if units is not None:
            units = tuple(integer(u, here, 0, len(self.units)) for u, here in items(units, f"{place}.units"))
        if places is not None:
            chosen = list(self.by_unit(places, f"{place}.places"))
            places = {unit: self.places(entry, here, unit) for unit, here, entry in chosen}
        return Crown(units, places, choice(found["adaptive"], f"{place}.adaptive", (True, False)))

    def refine(self, value: Any, place: str) -> Step:
        lent = ("below_multipliers", "above_multipliers")
        found = fields(value, place, "do", "unit", "places", "below", "above", optional=lent)
        unit = integer(found["unit"], f"{place}.unit", 0, len(self.units))
        places = self.places(found["places"], f"{place}.places", unit)
        slopes = [self.slopes(found[s], f"{place}.{s}", (1, places.size)) for s in ("below", "above")]
        multipliers: list[dict[int, Any]] = [{}, {}]
        for s, side in zip(lent, multipliers, strict=True):
            for of, here, part in self.by_unit({} if found[s] is None else found[s], f"{place}.{s}"):
                parts = fields(part, here, "at", "value")
                at = self.places(parts["at"], f"{here}.at", of)
                sizes = {"K": places.size, "U": at.size}
                side[of] = at, self.file.array(parts["value"], f"{here}.value", LENT, sizes)
        return Refine(unit, places, slopes[0], slopes[1], multipliers[0], multipliers[1])

    def close(self, value: Any, place: str) -> Step:
        found = fields(value, place, "do", "polytopes", "rows", "slopes")
        polytopes = self.polytopes(found["polytopes"], f"{place}.polytopes")
        rows, slopes = items(found["rows"], f"{place}.rows"), found["slopes"]
        if len(rows) != len(polytopes):
            raise Rejected(f"{place}.rows: {len(rows)} rows for {len(polytopes)} polytopes")
        picked = tuple(integer(r, here, 0, self.rows[p]) for (r, here), p in zip(rows, polytopes, strict=True))
        if isinstance(slopes, str):
            return Close(polytopes, picked, cast(Mode, choice(slopes, f"{place}.slopes", MODES)))
        return Close(polytopes, picked, self.slopes(slopes, f"{place}.slopes", (1, len(polytopes))))

    def polytopes(self, value: Any, place: str) -> tuple[int, ...]:
        found = tuple(integer(p, here, 0, len(self.rows)) for p, here in items(value, place))
        if len(set(found)) != len(found):
            raise Rejected(f"{place}: a polytope stands twice")
        return found

    def by_unit(self, value: Any, place: str) -> Iterator[tuple[int, str, Any]]:
        """The parts of an object whose keys are units, each with its unit and place."""
        for name, part in named(value, place).items():
            yield integer(int(matching(name, place, *UNIT)), place, 0, len(self.units)), f"{place}.{name}", part

    def places(self, name: Any, place: str, unit: int) -> Index:
        """Distinct places of a unit."""
        at: Index = self.file.array(name, place, PLACES, {"unit": self.units[unit]})
        if np.unique(at).size != at.size:
            raise Rejected(f"{place}: a place stands twice")
        return at

    def slopes(self, value: Any, place: str, forms: tuple[int, ...]) -> Slopes:
        """SLOPES; forms: which numbers S of rows will do."""
        found: Slopes = {}
        for unit, here, part in self.by_unit(value, place):
            parts = fields(part, here, "at", "lower", optional=("upper",))
            at = self.places(parts["at"], f"{here}.at", unit)
            table = {name: rule for name, rule in SLOPES.items() if parts[name] is not None}
            arrays = _arrays(self.file, parts, here, table, {"U": at.size})
            if len(arrays["lower"]) not in forms:
                raise Rejected(f"{here}.lower: {len(arrays['lower'])} rows do not fit the forms")
            found[unit] = UnitSlopes(at, arrays["lower"], arrays.get("upper"))
        return found

    def tree(self, value: Any, place: str) -> Tree:
        more = ("renew", "slots", "entry_slopes", "planes", "caps")
        found = fields(value, place, "polytopes", *TREE, optional=more)
        polytopes = self.polytopes(found["polytopes"], f"{place}.polytopes")
        if not polytopes:
            raise Rejected(f"{place}.polytopes: none")
        widest = max(self.rows[p] for p in polytopes)
        sizes = {"units": len(self.units), "n": self.inputs, "polytopes": len(self.rows), "R": widest}
        planes = self.group(found["planes"], f"{place}.planes", PLANES, sizes)
        arrays = _arrays(self.file, found, place, TREE, sizes)
        caps = self.group(found["caps"], f"{place}.caps", CAPS, sizes)
        renew = np.zeros(sizes["N"], dtype=np.bool_)
        if found["renew"] is not None:
            renew = self.file.array(found["renew"], f"{place}.renew", RENEW, sizes)
        tree = Tree(
            polytopes=polytopes,
            renew=renew,
            entry_slopes=self.entry_slopes(found["slots"], found["entry_slopes"], place, sizes["E"]),
            **arrays,
            **{f"plane_{name}": array for name, array in planes.items()},
            **{f"cap_{name}": array for name, array in caps.items()},
        )
        self.fits(tree, place)
        return tree

    def group(self, value: Any, place: str, table: Mapping[str, Rule], sizes: Sizes) -> dict[str, Any]:
        """The arrays of a table, of no elements where value is null."""
        if value is not None:
            return _arrays(self.file, fields(value, place, *table), place, table, sizes)
        shapes = {name: [sizes.setdefault(letter, 0) for letter in rule.shape or ""] for name, rule in table.items()}
        return {name: np.zeros(shape, archive.AS_READ[table[name].kind]) for name, shape in shapes.items()}

    def entry_slopes(self, slots: Any, value: Any, place: str, entries: int) -> Slopes | None:
        """SLOPES with a row for each entry, their places told apart."""
        if slots is None and value is None:
            return None
        at = named(fields(slots, f"{place}.slots", "at")["at"], f"{place}.slots.at")
        here = f"{place}.entry_slopes"
        if at.keys() != named(value, here).keys():
            raise Rejected(f"{here}: not of the units of `slots`")
        parts = {name: fields(part, f"{here}.{name}", "lower", optional=("upper",)) for name, part in value.items()}
        return self.slopes({name: {**part, "at": at[name]} for name, part in parts.items()}, here, (entries,))

    def fits(self, tree: Tree, place: str) -> None:
        """Rejected unless the arrays fit each other."""
        sizes = np.array([*self.units, 0, self.inputs], dtype=np.int64)  # of the last two: not split, the input
        for what, unit, where in (
            ("place", tree.unit, tree.place),
            ("multiplier_place", tree.multiplier_unit, tree.multiplier_place),
            ("planes.place", tree.plane_unit, tree.plane_place),
            ("caps.place", tree.cap_unit, tree.cap_place),
        ):
            if not ((unit == NOT_SPLIT) | (where >= 0) & (where < sizes[unit])).all():
                raise Rejected(f"{place}.{what}: a place outside of its unit")
        _is_tree(tree.unit, tree.child, f"{place}.child")
        if (np.diff(tree.entry_node) < 0).any():
            raise Rejected(f"{place}.entry_node: not ascending")
        if not np.isin(tree.entry_polytope, tree.polytopes).all():
            raise Rejected(f"{place}.entry_polytope: a polytope that the tree does not have")
        own = np.array(self.rows, dtype=np.int64)[tree.entry_polytope]
        if tree.entry_mix[np.arange(tree.entry_mix.shape[1]) >= own[:, None]].any():
            raise Rejected(f"{place}.entry_mix: a weight of a row that the polytope does not have")
        if not tree.plane_sign.all():
            raise Rejected(f"{place}.planes.sign: other than 1 and -1")
        if tree.sharpen_entry.size and len(tree.polytopes) != 1:
            raise Rejected(f"{place}.sharpen_entry: sharpening in a tree of {len(tree.polytopes)} polytopes")
        if tree.cap_entry.size and tree.renew.any():
            raise Rejected(f"{place}.caps: in a tree that renews nodes")


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
