"""Proofs as the bytes of a certificate: docs/certificate.md is the contract."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from certify.certificate.content import (
    Array,
    CaseProof,
    Close,
    Crown,
    Mode,
    MultiplierSet,
    Refine,
    SlopeSet,
    SplitTree,
    Step,
)
from certify.graph import Graph
from certify.model import Model
from certify.property import Box, Property
from certify.rules import is_affine

_CAPS = ("entry", "unit", "place", "multiplier", "share")
FORMAT, VERSION = "certify.certificate", 2


def units(graph: Graph) -> dict[int, int]:
    """Nonlinear node -> the number of its unit."""
    nonlinear = (i for i, node in enumerate(graph.nodes) if i and not is_affine(node.op))
    return {node: number for number, node in enumerate(nonlinear)}


def sources(graph: Graph) -> dict[int, int]:
    """Node that a nonlinear one reads -> the first unit that reads it."""
    found: dict[int, int] = {}
    for node, unit in units(graph).items():
        found.setdefault(graph.nodes[node].inputs[0], unit)
    return found


def encode(model: Model, prop: Property, proofs: Sequence[CaseProof], *, spec_sha256: str | None = None) -> bytes:
    """The certificate of a property all of whose cases have a proof, in order."""
    assert len(proofs) == len(prop.cases), "one proof a case"
    archive = _Archive()
    graph = model.graph
    header = {
        "format": FORMAT,
        "version": VERSION,
        "model": {
            "sha256": model.sha256,
            "mean": model.before.mean,
            "std": model.before.std,
            "layout": "nhwc" if model.before.layout == "nhwc" else None,
            "softmax": "dropped" if model.softmax_dropped else "kept",
        },
        "property": _property(archive, prop, spec_sha256),
        "units": [int(np.prod(graph.nodes[i].shape)) for i in units(graph)],
        "cases": [
            {
                "steps": [_step(archive, step) for step in proof.steps],
                "trees": [_tree(archive, tree) for tree in proof.trees],
            }
            for proof in proofs
        ],
    }
    return archive.close(header)


@dataclass
class _Archive:
    """Arrays on their way into the file, each under a name of its own."""

    def __init__(self) -> None:
        self.arrays: dict[str, Array] = {}

    def add(self, array: Any, dtype: Any = None) -> str:
        """The name under which the array will be found."""
        name = f"a{len(self.arrays)}"
        self.arrays[name] = np.ascontiguousarray(np.asarray(array, dtype=dtype))
        return name

    def close(self, header: dict[str, Any]) -> bytes:
        text = np.frombuffer(json.dumps(header, separators=(",", ":")).encode(), dtype=np.uint8)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, header=text, **self.arrays)
        return buffer.getvalue()


def _property(archive: _Archive, prop: Property, spec_sha256: str | None) -> dict[str, Any]:
    ball = prop.ball
    if ball is not None:
        return {
            "kind": "ball",
            "center": archive.add(ball.center.ravel(), np.float64),
            "norm": ball.norm,
            "eps": str(ball.eps),
            "low": ball.low if math.isfinite(ball.low) else None,
            "high": ball.high if math.isfinite(ball.high) else None,
            "label": ball.label,
            "classes": ball.classes,
        }
    cases = []
    for case in prop.cases:
        assert isinstance(case.inputs, Box), "only balls around samples are stated as balls"
        polytopes = [{"coeff": archive.add(p.coeff), "offset": archive.add(p.offset)} for p in case.unsafe]
        lower, upper = (archive.add(side.ravel()) for side in (case.inputs.lower, case.inputs.upper))
        cases.append({"lower": lower, "upper": upper, "polytopes": polytopes})
    return {"kind": "cases", "sha256": spec_sha256, "cases": cases}


def _step(archive: _Archive, step: Step) -> dict[str, Any]:
    if isinstance(step, Crown):
        places = None
        if step.places is not None:
            places = {str(unit): archive.add(at, np.int32) for unit, at in step.places.items()}
        return {"do": "crown", "units": None, "places": places, "adaptive": step.adaptive}
    if isinstance(step, Refine):
        return {
            "do": "slopes",
            "unit": step.unit,
            "places": archive.add(step.places, np.int32),
            "below": _slopes(archive, step.below),
            "above": _slopes(archive, step.above),
            **_multipliers(archive, "below_multipliers", step.below_multipliers),
            **_multipliers(archive, "above_multipliers", step.above_multipliers),
        }
    assert isinstance(step, Close)
    return {
        "do": "close",
        "polytopes": list(step.polytopes),
        "rows": list(step.rows),
        "slopes": _mode(archive, step.slopes),
    }


def _multipliers(archive: _Archive, key: str, chosen: MultiplierSet) -> dict[str, Any]:
    """The key, where there is anything to say."""
    found = {
        str(unit): {"at": archive.add(at, np.int32), "value": archive.add(value, np.float32)}
        for unit, (at, value) in chosen.items()
    }
    return {key: found} if found else {}


def _mode(archive: _Archive, slopes: Mode | SlopeSet) -> Any:
    return slopes if isinstance(slopes, str) else _slopes(archive, slopes)


def _slopes(archive: _Archive, slopes: SlopeSet) -> dict[str, Any]:
    found = {}
    for unit, chosen in slopes.items():
        found[str(unit)] = {"at": archive.add(chosen.at, np.int32), "lower": archive.add(chosen.lower)}
        if chosen.upper is not None:
            found[str(unit)]["upper"] = archive.add(chosen.upper)
    return found


def _tree(archive: _Archive, tree: SplitTree) -> dict[str, Any]:
    def named(parts: tuple[Array, ...] | None, names: Sequence[str], kinds: Sequence[Any]) -> dict[str, str]:
        arrays = parts if parts is not None else tuple(np.zeros(0) for _ in names)
        return {n: archive.add(a, kind) for n, a, kind in zip(names, arrays, kinds, strict=True)}

    slopes: Mapping[int, Any] | None = tree.entry_slopes
    entry_slopes = None
    if slopes is not None:
        entry_slopes = {}
        for unit, chosen in slopes.items():
            entry_slopes[str(unit)] = {"lower": archive.add(chosen.lower)}
            if chosen.upper is not None:
                entry_slopes[str(unit)]["upper"] = archive.add(chosen.upper)
    integers = [np.int32] * 3
    return {
        "polytopes": list(tree.polytopes),
        "unit": archive.add(tree.unit, np.int32),
        "place": archive.add(tree.place, np.int32),
        "cut": archive.add(tree.cut, np.float64),
        "child": archive.add(tree.child, np.int32),
        "renew": None if tree.renew is None else archive.add(tree.renew, np.bool_),
        "entry_node": archive.add(tree.entry_node, np.int32),
        "entry_polytope": archive.add(tree.entry_polytope, np.int32),
        "entry_mix": archive.add(tree.entry_mix, np.float32),
        "slots": None
        if slopes is None
        else {"at": {str(unit): archive.add(chosen.at, np.int32) for unit, chosen in slopes.items()}},
        "entry_slopes": entry_slopes,
        **named(
            tree.multipliers,
            ("multiplier_entry", "multiplier_unit", "multiplier_place", "multiplier"),
            [*integers, np.float32],
        ),
        "planes": None if tree.planes is None else named(tree.planes, ("unit", "place", "sign"), integers),
        **({} if tree.caps is None else {"caps": named(tree.caps, _CAPS, [*integers, np.float32, np.uint8])}),
        **named(tree.sharpenings, ("sharpen_entry", "sharpen_plane", "sharpen_beta"), [np.int32, np.int32, np.float32]),
    }
