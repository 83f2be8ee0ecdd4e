"""`certify.bounds`: bounds of a network's outputs for researchers, differentiable for IBP and CROWN."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from certify.arrays import Array, is_torch, like, namespace
from certify.bounding.crown import Knowledge, backward, row_form
from certify.bounding.interval import ibp
from certify.bounding.propagate import propagate
from certify.bounding.region import Region
from certify.errors import UsageError
from certify.graph import Graph
from certify.model import Model
from certify.options import BOUND_METHODS

if TYPE_CHECKING:
    import torch


def bounds(
    network: torch.nn.Module | Model | Graph,
    lower: Array,
    upper: Array,
    method: str = "crown",
    *,
    rows: Array | None = None,
    iterations: int = 20,
) -> tuple[Array, Array]:
    """(lower, upper) with lower <= rows . f(x) <= upper for all x in the boxes, in real arithmetic.

    network: a module, a Model or a Graph. lower, upper: boxes (B, *input_shape); torch tensors, or numpy arrays with a
    Graph. rows: (S, n_out) or (B, S, n_out), default the outputs themselves. Returns two arrays (B, S), or
    (B, *output_shape) without rows, in the boxes' dtype. Rounding is accounted for at any dtype.
    On CUDA float32 this assumes full float32 products: no TF32, no Winograd convolutions; float64 needs no such care.

    method: "ibp" (Gowal et al. 2018), "crown" (Zhang et al. 2018, intersected with IBP) or "alpha-crown" (Xu et al.
    2021, `iterations` joint steps). IBP and CROWN are differentiable in the module's parameters and the boxes, to
    train with; alpha-CROWN's result carries no gradient.
    """
    if method not in BOUND_METHODS:
        raise UsageError(f"method {method!r} is not known; choose one of {', '.join(BOUND_METHODS)}")
    if lower.shape != upper.shape:
        raise UsageError(f"lower has shape {tuple(lower.shape)}, upper {tuple(upper.shape)}; they must agree")
    if not bool((lower <= upper).all()):
        raise UsageError("some box has lower > upper or NaN; give boxes with lower <= upper everywhere")
    graph = _graph(network, lower)
    if tuple(lower.shape[1:]) != graph.input_shape:
        raise UsageError(f"boxes have shape {tuple(lower.shape)}; the network takes (B, {graph.input_shape})")
    count = lower.shape[0]
    coeff = _rows(graph, rows, lower)
    if method == "ibp" and rows is None:
        return ibp(graph, lower, upper)[-1]
    region = Region(lower.reshape((count, -1)), upper.reshape((count, -1)))
    known = propagate(graph, region, crown=method != "ibp")
    if method == "alpha-crown":
        known = _detached(known)
        low, high = _optimised(known, coeff, iterations)
    else:
        low, high = _plain(known, coeff)
    if rows is None:
        xp = namespace(low)
        boxes = known.flat(graph.output)
        low, high = xp.maximum(low, boxes[0]), xp.minimum(high, boxes[1])
        return low.reshape((count, *graph.output_shape)), high.reshape((count, *graph.output_shape))
    return low, high


def _graph(network: torch.nn.Module | Model | Graph | str | Path, sample: Array) -> Graph:
    if isinstance(network, Model):
        network = network.graph
    if isinstance(network, Graph):
        return network.cast(sample[:1])
    if isinstance(network, str | Path):
        raise UsageError(
            f"bounds take a network, not a path: certify.bounds(certify.load_model({str(network)!r}), ...)"
        )
    if not is_torch(sample):
        raise UsageError("a torch module takes torch tensors as boxes; give torch.from_numpy(lower), ...")
    from certify.frontends.torch_import import graph_from_torch

    return graph_from_torch(network, sample[:1])


def _rows(graph: Graph, rows: Array | None, sample: Array) -> Array:
    """Specification rows as (B, S, n_out); the outputs themselves where none are given."""
    xp = namespace(sample)
    size = 1
    for n in graph.output_shape:
        size *= n
    coeff = xp.eye(size, dtype=sample.dtype, device=sample.device) if rows is None else like(rows, sample)
    if coeff.shape[-1] != size:
        raise UsageError(f"rows have shape {tuple(coeff.shape)}; the network has {size} outputs")
    return xp.broadcast_to(coeff, (sample.shape[0], *coeff.shape[-2:]))


def _plain(known: Knowledge, coeff: Array) -> tuple[Array, Array]:
    output = known.graph.output
    return backward(known, row_form(output, coeff)), -backward(known, row_form(output, -coeff))


def _optimised(known: Knowledge, coeff: Array, iterations: int) -> tuple[Array, Array]:
    """alpha-CROWN of both sides; the search leaves out error terms, the last pass has them."""
    if not is_torch(coeff):
        raise UsageError("alpha-crown needs torch tensors; give torch.from_numpy(lower), ...")
    import torch

    from certify.bounding.alpha import AlphaOptions, optimise

    both = torch.cat([coeff, -coeff], dim=1).detach()
    found = optimise(known, both, AlphaOptions(iterations=iterations))
    with torch.no_grad():
        sharper = propagate(known.graph, known.region, slopes=found.sides, previous=known)
        value = backward(sharper, row_form(known.graph.output, both), slopes=found.rows)
        plain = backward(known, row_form(known.graph.output, both))
    value = torch.maximum(value, plain)
    return value[:, : coeff.shape[1]], -value[:, coeff.shape[1] :]


def _detached(known: Knowledge) -> Knowledge:
    """The same knowledge without its autograd history."""
    region = Region(known.region.lower.detach(), known.region.upper.detach())
    boxes = [None if b is None else (b[0].detach(), b[1].detach()) for b in known.boxes]
    weights = [None if w is None else w.detach() for w in known.weights]
    return Knowledge(known.graph, region, boxes, weights, known.floor.detach())
