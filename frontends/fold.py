"""Passes over a lowered network: dead nodes out, a Scale folded into the affine op before it, errors stated.

    y = s * (W x + b) + t   becomes   (s W) x + (s b + t)

where s and t are per output channel and nothing else reads the inner value: biases, BatchNorm, mean and std.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from certify import ops
from certify.arrays import is_torch, namespace
from certify.frontends import inexact
from certify.frontends.inexact import Known
from certify.graph import Node, Shape


def fold(nodes: Sequence[Node], output: int) -> tuple[Node, ...]:
    """The nodes that `output` needs, in order, output last, with every foldable Scale folded."""
    kept = live(nodes, output)
    readers = Counter(i for node in kept for i in node.inputs)
    out: list[Node] = []
    number: list[int] = []  # index in `kept` -> index in `out`
    for node in kept:
        if isinstance(node.op, ops.Scale) and readers[node.inputs[0]] == 1:
            before = number[node.inputs[0]]
            merged = _merge(out[before], node.op, node.shape)
            if merged is not None:
                out[before] = merged
                number.append(before)
                continue
        number.append(len(out))
        out.append(Node(node.name, node.op, tuple(number[i] for i in node.inputs), node.shape))
    return live(out, number[-1])


def live(nodes: Sequence[Node], output: int) -> tuple[Node, ...]:
    """The nodes that `output` depends on (and the input), renumbered, in order, output last."""
    needed = {0, output}
    for i in range(output, 0, -1):
        if i in needed:
            needed.update(nodes[i].inputs)
    kept = sorted(needed)
    number = {old: new for new, old in enumerate(kept)}
    return tuple(Node(n.name, n.op, tuple(number[i] for i in n.inputs), n.shape) for n in (nodes[i] for i in kept))


def _merge(before: Node, scale: ops.Scale, shape: Shape) -> Node | None:
    """`before` and then `scale` as one node, or None where they do not fold."""
    op = before.op
    if not isinstance(op, ops.Linear | ops.Conv | ops.ConvTranspose | ops.Scale) or before.shape != shape:
        return None
    if isinstance(op, ops.ConvTranspose) and op.groups > 1:
        return None
    factor = _channels(_weight(scale), op, shape)
    shift = None if scale.bias is None else _channels(_bias(scale), op, shape)
    if factor is None or (scale.bias is not None and shift is None):
        return None
    bias = None if op.bias is None else _bias(op)
    weight, weight_error = op.weight, op.weight_error
    if not _is_one(factor):
        product = inexact.multiply(_weight(op), _along_weight(factor, op))
        weight, weight_error = inexact.relative(product, f"node {before.name}")
        bias = None if bias is None else inexact.multiply(bias, _along_bias(factor, op, shape))
    if shift is not None:
        shift = _along_bias(shift, op, shape)
        bias = shift if bias is None else inexact.add(bias, shift)
    fields = {"weight": weight, "weight_error": weight_error}
    if bias is not None:
        fields |= {"bias": bias.value, "bias_error": bias.error}
    return replace(before, op=replace(op, **fields))


def _bias(op: ops.Weighted) -> Known:
    """The bias of an op that has one, with its stated error."""
    return Known(op.bias, op.bias_error)


def _weight(op: ops.Weighted) -> Known:
    size = namespace(op.weight).abs(inexact.plain(op.weight))
    return Known(op.weight, inexact.scaled(size, op.weight_error * inexact.ERROR_INFLATION))


def _is_one(factor: Known) -> bool:
    """Exactly 1 and meant to stay so (a tensor with gradient is not)."""
    if not isinstance(factor.error, float) or (is_torch(factor.value) and factor.value.requires_grad):
        return False
    return bool((factor.value == 1).all())


def _channels(constant: Known, op: ops.Weighted, shape: Shape) -> Known | None:
    """The constant as one number per output channel (or one for all), None if it varies within a channel.

    For a Scale, which has no channels, the constant itself.
    """
    if isinstance(op, ops.Scale):
        return constant
    full = (1,) * (len(shape) - len(constant.shape)) + constant.shape
    channel = len(shape) - 1 if isinstance(op, ops.Linear) else 0
    if any(n != 1 for i, n in enumerate(full) if i != channel):
        return None
    return constant.reshape((full[channel],))


def _along_weight(channels: Known, op: ops.Weighted) -> Known:
    """Shaped to multiply the op's weight."""
    if isinstance(op, ops.Scale):
        return channels
    rank = len(op.weight.shape)
    before = 1 if isinstance(op, ops.ConvTranspose) else 0
    return channels.reshape((1,) * before + (-1,) + (1,) * (rank - before - 1))


def _along_bias(channels: Known, op: ops.Weighted, shape: Shape) -> Known:
    """Shaped to be added to the op's bias; Linear and Conv want one number for every channel."""
    if isinstance(op, ops.Scale):
        return channels
    count = shape[-1] if isinstance(op, ops.Linear) else shape[0]
    if channels.shape == (1,) and count > 1:
        channels = channels.broadcast((count,))
    return channels if isinstance(op, ops.Linear) else channels.reshape((-1, *(1,) * (len(shape) - 1)))
