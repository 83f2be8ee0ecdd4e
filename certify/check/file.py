"""The bytes of a certificate -> certify.check.content, all validated that can be without the network.

After this, a number is finite, a slope is in range, an index points into what the file itself states (`units`, the
property, a tree's nodes and entries), and a tree's nodes are a tree. What is left for others: that `units` and the
property are the network's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np

from certify.check import content
from certify.check.archive import AS_READ, Archive, Item, Sizes, parsed, short
from certify.check.content import NOT_SPLIT, Index, Rule, Slopes, rules
from certify.check.errors import Rejected, Unreadable

FORMAT, VERSION = "certify.certificate", 2
SHA256 = r"[0-9a-f]{64}", "a SHA-256 in lower-case hexadecimal digits"
EPS = (
    r"\d{1,400}(\.\d{1,400})?([eE][+-]?\d{1,3})?|\d{1,400}/0{0,399}[1-9]\d{0,399}",
    "a decimal or fraction, not negative, in quotes",
)
ZERO = Fraction(0)
UNIT = r"0|[1-9][0-9]{0,8}", "a unit"

BOX, POLYTOPE, SLOPES = rules(content.Case), rules(content.Polytope), rules(content.UnitSlopes)
TREE, PLANES, CAPS = (rules(content.Tree, prefix) for prefix in ("", "plane_", "cap_"))
RENEW = TREE["renew"]
TREE = {name: rule for name, rule in TREE.items() if not name.startswith(("renew", "plane_", "cap_"))}


def read_certificate(data: bytes) -> content.Certificate:
    """The certificate in the bytes; Unreadable where they are none, Rejected where it breaks the format."""
    file = Archive(data)
    header = parsed(Item("header", "header", file).array(Rule("u", "B")).tobytes())
    found = Item(header, "header", file).fields("format", "version", "model", "property", "units", "cases")
    if found["format"].value != FORMAT:
        raise Unreadable(f"header: format is {short(found['format'].value)}, not {FORMAT!r}")
    if found["version"].integer(0) != VERSION:
        raise Rejected(f"header: version {found['version'].value} is not known; this checker reads version {VERSION}")
    model = found["model"].fields("sha256", "mean", "std", "layout", "softmax")
    before = content.Before(_numbers(model["mean"]), _numbers(model["std"]), model["layout"].choice(None, "nhwc"))
    softmax: Literal["dropped", "kept"] = model["softmax"].choice("dropped", "kept")
    stated = _property(found["property"])
    if softmax == "dropped" and not isinstance(stated, content.Ball):
        raise Rejected("model: softmax is dropped, which only a property of the kind 'ball' allows")
    units = tuple(item.integer(0) for item in found["units"].items())
    if isinstance(stated, content.Ball):
        rows, inputs = [(1,) * (stated.classes - 1)], stated.center.size
    else:
        rows, inputs = [tuple(len(p.offset) for p in c.polytopes) for c in stated.cases], stated.cases[0].lower.size
    proofs = found["cases"].items()
    if len(proofs) != len(rows):
        raise Rejected(f"cases: {len(proofs)} proofs for {len(rows)} cases of the property")
    cases = tuple(_Case(units, inputs, r).proof(p) for p, r in zip(proofs, rows, strict=True))
    if file.unread:
        raise Rejected(f"entries that nothing refers to: {short(sorted(file.unread))}")
    return content.Certificate(model["sha256"].text(*SHA256), before, softmax, stated, units, cases)


def _numbers(item: Item) -> float | tuple[float, ...] | None:
    if isinstance(item.value, list):
        return tuple(part.number() for part in item.items())
    return item.number() if item.stated else None


def _property(item: Item) -> content.Ball | content.Cases:
    if item.kind("kind", "ball", "cases") == "ball":
        return _ball(item)
    found = item.fields("kind", "cases", optional=("sha256",))
    sizes: Sizes = {}  # n, m: the same for all
    cases = tuple(_case(part, sizes) for part in found["cases"].items())
    if not cases:
        raise Rejected("property.cases: none")
    return content.Cases(found["sha256"].text(*SHA256) if found["sha256"].stated else None, cases)


def _ball(item: Item) -> content.Ball:
    found = item.fields("kind", "center", "norm", "eps", "label", "classes", optional=("low", "high"))
    classes = found["classes"].integer(2, 1 << 24)
    ball = content.Ball(
        center=found["center"].array(Rule("f")),
        norm=found["norm"].choice("linf", "l2", "l1"),
        eps=Fraction(found["eps"].text(*EPS)),
        low=found["low"].number() if found["low"].stated else -math.inf,
        high=found["high"].number() if found["high"].stated else math.inf,
        label=found["label"].integer(0, classes),
        classes=classes,
    )
    center = ball.center.ravel()
    nearest = np.clip(center, ball.low, ball.high)
    ways = zip(*(side[center != nearest].tolist() for side in (center, nearest)), strict=True)
    gaps = [abs(Fraction(x) - Fraction(way)) for x, way in ways]
    power = 2 if ball.norm == "l2" else 1
    if (max(gaps, default=ZERO) if ball.norm == "linf" else sum((g**power for g in gaps), ZERO)) > ball.eps**power:
        raise Rejected(f"{item.place}: no point of the ball lies between low and high")
    return ball


def _case(item: Item, sizes: Sizes) -> content.Case:
    found = item.fields(*BOX, "polytopes")
    box = _arrays(found, BOX, sizes)
    if not (box["lower"] <= box["upper"]).all():
        raise Rejected(f"{item.place}: lower > upper at {int(np.argmax(box['lower'] > box['upper']))}")
    polytopes = []
    for part in found["polytopes"].items():
        sizes.pop("R", None)
        polytopes.append(content.Polytope(**_arrays(part.fields(*POLYTOPE), POLYTOPE, sizes)))
        if not sizes["R"]:
            raise Rejected(f"{part.place}: no rows")
    if not polytopes:
        raise Rejected(f"{item.place}: no polytopes")
    return content.Case(**box, polytopes=tuple(polytopes))


def _arrays(found: Mapping[str, Item], table: Mapping[str, Rule], sizes: Sizes) -> dict[str, Any]:
    """The arrays that a table names."""
    return {name: found[name].array(rule, sizes) for name, rule in table.items()}


def _group(item: Item, table: Mapping[str, Rule], sizes: Sizes) -> dict[str, Any]:
    """The arrays of a table, of no elements where the item is null."""
    if item.stated:
        return _arrays(item.fields(*table), table, sizes)
    shapes = {name: [sizes.setdefault(letter, 0) for letter in rule.shape or ""] for name, rule in table.items()}
    return {name: np.zeros(shape, AS_READ[table[name].kind]) for name, shape in shapes.items()}


@dataclass(frozen=True)
class _Case:
    """Reads a case's proof. What its indices point into: the sizes of units and input, the rows of each polytope."""

    units: tuple[int, ...]
    inputs: int
    rows: tuple[int, ...]

    def proof(self, item: Item) -> content.Proof:
        found = item.fields("steps", "trees")
        steps, trees = found["steps"].items(), found["trees"].items()
        return content.Proof(tuple(map(self.step, steps)), tuple(map(self.tree, trees)))

    def step(self, item: Item) -> content.Step:
        do = item.kind("do", "crown", "slopes", "close")
        return {"crown": self.crown, "slopes": self.refine, "close": self.close}[do](item)

    def crown(self, item: Item) -> content.Step:
        found = item.fields("do", "adaptive", optional=("units", "places"))
        units, places = found["units"], found["places"]
        return content.Crown(
            tuple(unit.integer(0, len(self.units)) for unit in units.items()) if units.stated else None,
            {unit: self.places(part, unit) for unit, part in self.by_unit(places)} if places.stated else None,
            found["adaptive"].choice(True, False),
        )

    def refine(self, item: Item) -> content.Step:
        lent = ("below_multipliers", "above_multipliers")
        found = item.fields("do", "unit", "places", "below", "above", optional=lent)
        unit = found["unit"].integer(0, len(self.units))
        places = self.places(found["places"], unit)
        slopes = [self.slopes(found[side], 1, places.size) for side in ("below", "above")]
        multipliers = [self.multipliers(found[side], places.size) for side in lent]
        return content.Refine(unit, places, slopes[0], slopes[1], multipliers[0], multipliers[1])

    def close(self, item: Item) -> content.Step:
        found = item.fields("do", "polytopes", "rows", "slopes")
        polytopes, rows, slopes = self.polytopes(found["polytopes"]), found["rows"].items(), found["slopes"]
        if len(rows) != len(polytopes):
            raise Rejected(f"{item.place}.rows: {len(rows)} rows for {len(polytopes)} polytopes")
        picked = tuple(row.integer(0, self.rows[p]) for row, p in zip(rows, polytopes, strict=True))
        if isinstance(slopes.value, str):
            return content.Close(polytopes, picked, slopes.choice("interval", "adaptive", "parallel"))
        return content.Close(polytopes, picked, self.slopes(slopes, 1, len(polytopes)))

    def polytopes(self, item: Item) -> tuple[int, ...]:
        found = tuple(part.integer(0, len(self.rows)) for part in item.items())
        if len(set(found)) != len(found):
            raise Rejected(f"{item.place}: a polytope stands twice")
        return found

    def by_unit(self, item: Item) -> Iterator[tuple[int, Item]]:
        """The parts of an object whose keys are units."""
        for name, part in item.named().items():
            unit = int(Item(name, item.place, item.file).text(*UNIT))
            yield Item(unit, item.place, item.file).integer(0, len(self.units)), part

    def places(self, item: Item, unit: int) -> Index:
        """Distinct places of a unit."""
        at: Index = item.array(SLOPES["at"], {"unit": self.units[unit]})
        if not ((at[1:] > at[:-1]).all() or np.diff(np.sort(at)).all()):  # np.unique takes four times as long
            raise Rejected(f"{item.place}: a place stands twice")
        return at

    def slopes(self, item: Item, *forms: int) -> Slopes:
        """SLOPES; forms: which numbers S of rows will do."""
        return {
            unit: self.unit_slopes(part.fields("at", "lower", optional=("upper",)), unit, forms)
            for unit, part in self.by_unit(item)
        }

    def unit_slopes(self, parts: Mapping[str, Item], unit: int, forms: tuple[int, ...]) -> content.UnitSlopes:
        at = self.places(parts["at"], unit)
        sizes = {"U": at.size}
        lower = parts["lower"].array(SLOPES["lower"], sizes)
        if len(lower) not in forms:
            raise Rejected(f"{parts['lower'].place}: {len(lower)} rows do not fit the forms")
        upper = parts["upper"].array(SLOPES["upper"], sizes) if parts["upper"].stated else None
        return content.UnitSlopes(at, lower, upper)

    def multipliers(self, item: Item, forms: int) -> dict[int, tuple[Index, Any]]:
        """Unit -> places (U,) and multipliers (forms, U); none where it is null."""
        found = {}
        for unit, part in self.by_unit(item) if item.stated else ():
            parts = part.fields("at", "value")
            at = self.places(parts["at"], unit)
            found[unit] = at, parts["value"].array(Rule("f", "KU"), {"K": forms, "U": at.size})
        return found

    def tree(self, item: Item) -> content.Tree:
        found = item.fields("polytopes", *TREE, optional=("renew", "slots", "entry_slopes", "planes", "caps"))
        polytopes = self.polytopes(found["polytopes"])
        if not polytopes:
            raise Rejected(f"{item.place}.polytopes: none")
        widest = max(self.rows[p] for p in polytopes)
        sizes = {"units": len(self.units), "n": self.inputs, "polytopes": len(self.rows), "R": widest}
        planes = _group(found["planes"], PLANES, sizes)
        arrays = _arrays(found, TREE, sizes)
        caps = _group(found["caps"], CAPS, sizes)
        tree = content.Tree(
            polytopes=polytopes,
            renew=found["renew"].array(RENEW, sizes) if found["renew"].stated else np.zeros(sizes["N"], dtype=np.bool_),
            entry_slopes=self.entry_slopes(found["slots"], found["entry_slopes"], sizes["E"]),
            **arrays,
            **{f"plane_{name}": array for name, array in planes.items()},
            **{f"cap_{name}": array for name, array in caps.items()},
        )
        self.fits(tree, item.place)
        return tree

    def entry_slopes(self, slots: Item, slopes: Item, entries: int) -> Slopes | None:
        """SLOPES with a row for each entry, their places told apart."""
        if not slots.stated and not slopes.stated:
            return None
        at, found = slots.fields("at")["at"].named(), slopes.named()
        if at.keys() != found.keys():
            raise Rejected(f"{slopes.place}: not of the units of `slots`")
        return {
            unit: self.unit_slopes(part.fields("lower", optional=("upper",)) | {"at": at[str(unit)]}, unit, (entries,))
            for unit, part in self.by_unit(slopes)
        }

    def fits(self, tree: content.Tree, place: str) -> None:
        """Rejected unless the arrays of a tree fit each other."""
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
        own = np.array(self.rows, dtype=np.int64)[tree.entry_polytope]
        renewed = tree.cap_entry.size and tree.renew.any()
        for what, wrong, why in (
            ("entry_node", np.diff(tree.entry_node) < 0, "not ascending"),
            ("entry_polytope", ~np.isin(tree.entry_polytope, tree.polytopes), "a polytope that the tree does not have"),
            (
                "entry_mix",
                tree.entry_mix[np.arange(tree.entry_mix.shape[1]) >= own[:, None]],
                "a weight of a row that the polytope does not have",
            ),
            ("planes.sign", tree.plane_sign == 0, "other than 1 and -1"),
            ("sharpen_entry", tree.sharpen_entry.size and len(tree.polytopes) != 1, "in a tree of several polytopes"),
            ("caps", renewed, "in a tree that renews nodes"),
        ):
            if np.any(wrong):
                raise Rejected(f"{place}.{what}: {why}")


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
