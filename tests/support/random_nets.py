"""Small random networks of every op and every lowering, boxes for them, and samples of the boxes."""

from __future__ import annotations

from typing import Any

import numpy as np

from certify.frontends.lower import Builder
from certify.frontends.windows import Geometry
from certify.graph import Graph

FLAT_LAYERS = (
    "linear",
    "relu",
    "residual",
    "concat",
    "leaky",
    "clip",
    "abs",
    "maximum",
    "minimum",
    "split-max",
    "broadcast",
)
SMOOTH_LAYERS = ("sigmoid", "tanh")
IMAGE_LAYERS = (
    "conv",
    "conv-strided",
    "deconv",
    "max-pool",
    "average-pool",
    "batch-norm",
    "image-residual",
    "transpose",
)


def random_flat(seed: int, *, depth: int = 4, smooth: bool = True, inputs: int = 3, outputs: int = 2) -> Graph:
    """A network on vectors: `depth` layers drawn from all that vectors allow."""
    rng = np.random.default_rng([20, seed])
    b = Builder((inputs,))
    x = _dense(b, rng, 0, 4)
    for _ in range(depth):
        x = _flat_layer(b, rng, x, str(rng.choice(FLAT_LAYERS + (SMOOTH_LAYERS if smooth else ()))))
    x = _dense(b, rng, b.relu(x), outputs)
    return b.graph(x)


def random_image(seed: int, *, depth: int = 3, smooth: bool = True) -> Graph:
    """A network on (2, 4, 4) images, flattened at the end."""
    rng = np.random.default_rng([21, seed])
    b = Builder((2, 4, 4))
    x = 0
    for _ in range(depth):
        x = b.relu(x) if x and rng.random() < 0.6 else x
        x = _image_layer(b, rng, x, str(rng.choice(IMAGE_LAYERS)))
        if smooth and rng.random() < 0.2:
            x = b.sigmoid(x)
    x = b.mean_axes(x, (1, 2)) if rng.random() < 0.3 else b.relu(x)
    return b.graph(_dense(b, rng, b.reshape(x, (-1,)), 2))


def relu_mlp(seed: int, *widths: int) -> Graph:
    """A plain ReLU network of the given widths, input first."""
    rng = np.random.default_rng([22, seed])
    b = Builder(widths[:1])
    x = 0
    for width in widths[1:-1]:
        x = b.relu(_dense(b, rng, x, width))
    return b.graph(_dense(b, rng, x, widths[-1]))


def _dense(b: Builder, rng: np.random.Generator, x: int, width: int) -> int:
    fan_in = b.shape(x)[-1]
    return b.linear(x, rng.standard_normal((width, fan_in)) / np.sqrt(fan_in) * 1.5, 0.3 * rng.standard_normal(width))


def _flat_layer(b: Builder, rng: np.random.Generator, x: int, kind: str) -> int:
    width = b.shape(x)[0]
    match kind:
        case "linear":
            return _dense(b, rng, x, int(rng.integers(2, 6)))
        case "relu":
            return _dense(b, rng, b.relu(x), int(rng.integers(2, 6)))
        case "residual":
            return b.sub(x, _dense(b, rng, b.relu(_dense(b, rng, x, 3)), width))
        case "concat":
            return _dense(b, rng, b.concat([x, b.relu(x), x], 0), 4)
        case "leaky":
            return b.leaky_relu(x, 0.1)
        case "clip":
            return b.clip(x, -0.4, 0.7)
        case "abs":
            return b.abs(x)
        case "maximum" | "minimum":
            other = _dense(b, rng, x, width)
            return b.maximum(x, other) if kind == "maximum" else b.minimum(x, other)
        case "split-max":
            y = b.max_first(b.reshape(_dense(b, rng, x, 6), (3, 2)))
            return b.concat([b.reshape(y, (2,)), b.slice(x, (slice(None, None, -1),))], 0)
        case "broadcast":
            return b.reshape(b.sum_axes(b.broadcast(b.reshape(x, (width, 1)), (width, 3)), (1,)), (width,))
        case "sigmoid":
            return b.sigmoid(b.scale(x, 2.0))
        case "tanh":
            return b.tanh(x)
    raise AssertionError(kind)


def _image_layer(b: Builder, rng: np.random.Generator, x: int, kind: str) -> int:
    channels, height, width = b.shape(x)
    small = min(height, width) < 2
    if small or kind == "conv":
        return _conv(b, rng, x, 2, 1 if small else 2, Geometry((1, 1), (0, 0, 0, 0) if small else (1, 0, 0, 1), (1, 1)))
    match kind:
        case "conv-strided":
            return _conv(b, rng, x, 3, 2, Geometry((2, 1), (0, 1, 1, 0), (1, 1)))
        case "deconv":
            weight = rng.standard_normal((channels, 2, 2, 2)) * 0.5
            return b.conv_transpose(x, weight, rng.standard_normal(2), geometry=Geometry((1, 2), (1, 0, 0, 1), (1, 1)))
        case "max-pool":
            return b.max_pool(x, (2, 2), Geometry((1, 2), (0, 0, 0, 0), (1, 1)))
        case "average-pool":
            return b.average_pool(x, (2, 2), Geometry((2, 1), (0, 0, 0, 0), (1, 1)))
        case "batch-norm":
            mean, scale = rng.standard_normal((2, channels))
            return b.batch_norm(x, scale, mean, mean, 0.5 + rng.random(channels), 1e-5)
        case "image-residual":
            return b.add(x, _conv(b, rng, b.relu(x), channels, 3, Geometry((1, 1), (1, 1, 1, 1), (1, 1))))
        case "transpose":
            return b.transpose(x, (0, 2, 1))
    raise AssertionError(kind)


def _conv(b: Builder, rng: np.random.Generator, x: int, filters: int, kernel: int, geometry: Geometry) -> int:
    weight = rng.standard_normal((filters, b.shape(x)[0], kernel, kernel)) * 0.6
    return b.conv(x, weight, 0.2 * rng.standard_normal(filters), geometry=geometry)


def boxes_for(graph: Graph, seed: int, count: int = 3) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A batch of boxes (B, *input): one narrow, one wide, the others between; some coordinates fixed."""
    rng = np.random.default_rng([23, seed])
    center = rng.standard_normal((count, *graph.input_shape))
    width = np.geomspace(0.01, 1.5, count).reshape((count, *(1,) * len(graph.input_shape)))
    radius = width * rng.random(center.shape) * (rng.random(center.shape) > 0.15)
    return center - radius, center + radius


def samples(lower: np.ndarray[Any, Any], upper: np.ndarray[Any, Any], seed: int, count: int) -> np.ndarray[Any, Any]:
    """(count, *input): random points and corners of one box, inside it without rounding."""
    rng = np.random.default_rng([24, seed])
    shape = (count, *lower.shape)
    inner = np.clip(lower + (upper - lower) * rng.random(shape), lower, upper)
    corner = np.where(rng.random(shape) < 0.5, lower, upper)
    return np.where(rng.random((count, *(1,) * lower.ndim)) < 0.5, inner, corner)
