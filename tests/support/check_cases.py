"""The checker's networks and certificates for tests: made directly, or written as a file by the plainest of writers."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from certify import ops
from certify.check import content, network
from certify.check.checker import Manner, verify
from certify.check.interval import model_of
from certify.check.rounding import EXACT, QUICK
from certify.graph import Graph


def network_of(graph: Graph) -> network.Network:
    """The same network, op by op, in the checker's terms."""
    nodes = []
    for i, node in enumerate(graph.nodes):
        before = tuple(graph.nodes[k].shape for k in node.inputs)
        nodes.append(network.Node(f"node {i}", _operation(node.op, before), tuple(node.inputs), node.shape))
    return network.Network(tuple(nodes))


def _operation(op: Any, shapes: Sequence[tuple[int, ...]]) -> network.Operation:
    match op:
        case ops.Input():
            return network.Input()
        case ops.Linear():
            return network.Linear(*_weights(op))
        case ops.Scale():
            return network.Scale(*_weights(op))
        case ops.Conv():
            geometry = (op.stride, op.pads, op.dilation, op.groups)
            return network.Conv(*_weights(op)[:2], *geometry, *_weights(op)[2:])
        case ops.ConvTranspose():
            geometry = (op.stride, op.pads, op.dilation, op.out_spatial, op.groups)
            return network.ConvTranspose(*_weights(op)[:2], *geometry, *_weights(op)[2:])
        case ops.Reshape():
            return network.Select(np.arange(int(np.prod(shapes[0]))))
        case ops.Select():
            return network.Select(np.asarray(op.index))
        case ops.SumAxes():
            return network.SumAxes(op.axes)
        case ops.Concat():
            return network.Concat(op.axis)
        case ops.Add():
            return network.Add(op.signs)
        case ops.MaxOfTwo():
            return network.Maximum()
        case ops.Relu():
            return network.Relu()
        case ops.Sigmoid():
            return network.Sigmoid()
    raise AssertionError(op)


def _weights(op: Any) -> tuple[Any, Any, float, Any]:
    bias = None if op.bias is None else np.asarray(op.bias, dtype=np.float64)
    if bias is not None and isinstance(op, ops.Conv | ops.ConvTranspose):
        bias = bias.reshape(-1)
    error = op.bias_error if isinstance(op.bias_error, float) else np.asarray(op.bias_error, dtype=np.float64)
    if isinstance(op, ops.Conv | ops.ConvTranspose) and not isinstance(error, float):
        error = error.reshape(-1)
    return np.asarray(op.weight, dtype=np.float64), bias, op.weight_error, error


def ball(center: Any, eps: str, label: int, classes: int, **more: Any) -> content.Ball:
    stated = {"norm": "linf", "low": -np.inf, "high": np.inf} | more
    return content.Ball(np.asarray(center, dtype=np.float64), eps=Fraction(eps), label=label, classes=classes, **stated)


def box(lower: Any, upper: Any, *rows: tuple[Sequence[Sequence[float]], Sequence[float]]) -> content.Cases:
    """One case: a box, and polytopes as (coeff, offset)."""
    sides = (np.asarray(v, dtype=np.float64) for v in (lower, upper))
    polytopes = tuple(
        content.Polytope(np.asarray(c, dtype=np.float64), np.asarray(d, dtype=np.float64)) for c, d in rows
    )
    return content.Cases(None, (content.Case(*sides, polytopes),))


def tree(**given: Any) -> content.Tree:
    """A tree with empty arrays for what is not given: by default one node, not split."""
    count = len(given.get("unit", [-2]))
    entries = len(given.get("entry_node", []))
    default: dict[str, Any] = {
        "polytopes": (0,),
        "unit": [-2] * count,
        "place": [0] * count,
        "cut": [0.0] * count,
        "child": [0] * count,
        "renew": [False] * count,
        "entry_node": [],
        "entry_polytope": [0] * entries,
        "entry_mix": np.ones((entries, 1)),
        "entry_slopes": None,
    }
    names = ("multiplier_entry", "multiplier_unit", "multiplier_place", "plane_unit", "plane_place", "plane_sign")
    default |= {name: [] for name in (*names, "sharpen_entry", "sharpen_plane", "multiplier", "sharpen_beta")}
    default |= {f"cap_{name}": [] for name in ("entry", "unit", "place", "multiplier", "share")}
    floats = ("cut", "entry_mix", "multiplier", "sharpen_beta", "cap_multiplier")
    others = {"renew": np.bool_, "cap_share": np.uint8} | dict.fromkeys(floats, np.float64)
    found = {}
    for name, value in (default | given).items():
        if name in ("polytopes", "entry_slopes"):
            found[name] = value
        else:
            found[name] = np.asarray(value, dtype=others.get(name, np.int64))
    return content.Tree(**found)


def certificate(
    net: network.Network, stated: content.Ball | content.Cases, *proofs: content.Proof
) -> content.Certificate:
    sizes = tuple(net.nodes[u].size for u in net.units)
    return content.Certificate("0" * 64, content.Before(), "kept", stated, sizes, proofs)


def judge(
    net: network.Network,
    stated: content.Ball | content.Cases,
    *proofs: content.Proof,
    exact: bool = False,
    arithmetic: Any = "real",
) -> str:
    """The level at which the proofs show what is stated, or Rejected."""
    model = model_of(net, EXACT if exact else QUICK)
    with np.errstate(all="ignore"):
        return verify(certificate(net, stated, *proofs), model, Manner(exact, arithmetic))


def packed(header: dict[str, Any]) -> bytes:
    """A certificate's file: every array in the header becomes an entry and leaves its name."""
    arrays: dict[str, Any] = {}

    def name(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            arrays[f"a{len(arrays)}"] = value
            return f"a{len(arrays) - 1}"
        if isinstance(value, dict):
            return {k: name(v) for k, v in value.items()}
        return [name(v) for v in value] if isinstance(value, list) else value

    text = np.frombuffer(json.dumps(name(header)).encode(), dtype=np.uint8)
    file = io.BytesIO()
    np.savez_compressed(file, header=text, **arrays)
    return file.getvalue()
