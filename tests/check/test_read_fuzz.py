"""Random attributes of every op whose meaning they change: what the checker reads is what onnxruntime computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import pytest
from check_evaluate import evaluate
from onnx_cases import chain, f, i64

from certify.check.content import Before
from certify.check.errors import Rejected
from certify.check.read_onnx import read_network

Rng = np.random.Generator
Drawn = tuple[list[tuple[str, list[str], dict[str, Any]]], dict[str, Any], tuple[int, ...], int]
TRIES = 40


def shape(rng: Rng, low: int = 2, high: int = 4) -> tuple[int, ...]:
    return (1, *(int(n) for n in rng.integers(1, 6, rng.integers(low, high + 1) - 1)))


def slice_(rng: Rng) -> Drawn:
    s = shape(rng)
    count = int(rng.integers(1, len(s) + 1))
    axes = rng.permutation(len(s))[:count]
    starts, ends = (rng.choice([-(2**40), *range(-7, 8), 2**40], count) for _ in range(2))
    steps = rng.choice([-3, -2, -1, 1, 2, 3], count)
    axes = np.where(rng.random(count) < 0.5, axes, axes - len(s))
    constants = {"s": i64(*starts), "e": i64(*ends), "a": i64(*axes), "p": i64(*steps)}
    return [("Slice", ["x", "s", "e", "a", "p"], {})], constants, s, int(rng.choice([10, 11, 13]))


def slice_old(rng: Rng) -> Drawn:
    s = shape(rng)
    axes = rng.permutation(len(s))[: rng.integers(1, len(s) + 1)]
    starts, ends = (rng.integers(-7, 8, len(axes)).tolist() for _ in range(2))
    return [("Slice", ["x"], {"axes": axes.tolist(), "starts": starts, "ends": ends})], {}, s, 9


def gather(rng: Rng) -> Drawn:
    s = shape(rng)
    axis = int(rng.integers(-len(s), len(s)))
    index = rng.integers(-s[axis], s[axis], tuple(rng.integers(1, 4, rng.integers(0, 3))))
    return [("Gather", ["x", "i"], {"axis": axis})], {"i": index}, s, 13


def gather_elements(rng: Rng) -> Drawn:
    s = shape(rng)
    axis = int(rng.integers(-len(s), len(s)))
    size = tuple(
        int(rng.integers(1, 7)) if i == axis % len(s) else int(rng.integers(1, n + 1)) for i, n in enumerate(s)
    )
    return [("GatherElements", ["x", "i"], {"axis": axis})], {"i": rng.integers(-s[axis], s[axis], size)}, s, 13


def gather_nd(rng: Rng) -> Drawn:
    s = shape(rng)
    depth = int(rng.integers(1, len(s) + 1))
    index = np.stack([rng.integers(-n, n, (3, 2)) for n in s[:depth]], axis=-1)
    return [("GatherND", ["x", "i"], {})], {"i": index}, s, 13


def pad(rng: Rng) -> Drawn:
    s = shape(rng)
    mode = str(rng.choice(["constant", "edge", "reflect", "constant"]))
    low = -3 if mode == "constant" else 0
    widths = [int(rng.integers(low, max(min(n - 1, 3), low) + 1)) for n in (*s, *s)]
    constants = {"p": i64(*widths), "v": np.float32(rng.choice([0.0, 1.5]))}
    return [("Pad", ["x", "p", "v"], {"mode": mode})], constants, s, int(rng.choice([11, 13, 18, 19]))


def pad_axes(rng: Rng) -> Drawn:
    s = shape(rng)
    axes = rng.permutation(len(s))[: rng.integers(1, len(s) + 1)]
    constants = {"p": i64(*rng.integers(0, 3, 2 * len(axes))), "a": i64(*axes)}
    return [("Pad", ["x", "p", "", "a"], {})], constants, s, 18


def unsqueeze(rng: Rng) -> Drawn:
    s = shape(rng)
    count = int(rng.integers(1, 4))
    axes = rng.permutation(len(s) + count)[:count]
    axes = np.where(rng.random(count) < 0.5, axes, axes - len(s) - count)
    if rng.random() < 0.5:
        return [("Unsqueeze", ["x"], {"axes": axes.tolist()}), ("Relu", ["t0"], {})], {}, s, 11
    return [("Unsqueeze", ["x", "a"], {}), ("Relu", ["t0"], {})], {"a": i64(*axes)}, s, 13


def squeeze(rng: Rng) -> Drawn:
    s = (1, *(int(n) for n in rng.choice([1, 1, 3], 3)))
    ones = [i for i, n in enumerate(s) if n == 1]
    axes = rng.permutation(ones)[: rng.integers(1, len(ones) + 1)]
    axes = np.where(rng.random(len(axes)) < 0.5, axes, axes - len(s))
    if rng.random() < 0.5:
        return [("Squeeze", ["x"], {"axes": axes.tolist()})], {}, s, 11
    return [("Squeeze", ["x", "a"], {})], {"a": i64(*axes)}, s, 13


def reshape(rng: Rng) -> Drawn:
    s = (1, 2, 3, 4)
    wanted = [[0, -1], [2, 0, -1], [0, 0, 0, 0, 1], [-1, 0, 2], [4, 6], [1, -1, 4], [24], [0, 3, 2, 4]][rng.integers(8)]
    return [("Reshape", ["x", "s"], {})], {"s": i64(*wanted)}, s, int(rng.choice([7, 13, 14]))


def flatten(rng: Rng) -> Drawn:
    s = shape(rng)
    return [("Flatten", ["x"], {"axis": int(rng.integers(-len(s), len(s) + 1))}), ("Relu", ["t0"], {})], {}, s, 11


def transpose(rng: Rng) -> Drawn:
    s = shape(rng)
    return [("Transpose", ["x"], {"perm": rng.permutation(len(s)).tolist()})], {}, s, 13


def tile(rng: Rng) -> Drawn:
    s = shape(rng, high=3)
    return [("Tile", ["x", "r"], {})], {"r": i64(*rng.integers(1, 4, len(s)))}, s, 13


def expand(rng: Rng) -> Drawn:
    s = tuple(int(n) for n in (1, *rng.choice([1, 3], 2)))
    wanted = [int(rng.choice([1, 2] if n == 1 else [1, n])) for n in s]
    extra = rng.integers(1, 3, rng.integers(0, 2)).tolist()
    return [("Expand", ["x", "s"], {})], {"s": i64(*extra, *wanted)}, s, 13


def concat(rng: Rng) -> Drawn:
    s = shape(rng)
    axis = int(rng.integers(-len(s), len(s)))
    other = f(*(int(rng.integers(1, 4)) if i == axis % len(s) else n for i, n in enumerate(s)))
    names = [["x", "c", "x"], ["c", "x"], ["x", "x"]][rng.integers(3)]
    return [("Concat", names, {"axis": axis})], {"c": other}, s, 13


def blocks(rng: Rng) -> Drawn:
    b = int(rng.integers(1, 4))
    if rng.random() < 0.5:
        return [("SpaceToDepth", ["x"], {"blocksize": b})], {}, (1, 2, 2 * b, 3 * b), 13
    mode = str(rng.choice(["DCR", "CRD"]))
    return [("DepthToSpace", ["x"], {"blocksize": b, "mode": mode})], {}, (1, 2 * b * b, 2, 3), 13


def resize(rng: Rng) -> Drawn:
    how = {"mode": "nearest", "coordinate_transformation_mode": str(rng.choice(["asymmetric", "half_pixel"]))}
    how["nearest_mode"] = "floor" if how["coordinate_transformation_mode"] == "asymmetric" else "round_prefer_floor"
    scales = np.array([1, 1, *rng.integers(1, 4, 2)], np.float32)
    return [("Resize", ["x", "", "k"], how)], {"k": scales}, (1, 2, 3, 4), int(rng.choice([11, 13, 18]))


def geometry(rng: Rng, s: tuple[int, ...], kernel: list[int], *, pooling: bool) -> dict[str, Any]:
    rank = len(kernel)
    how: dict[str, Any] = {"strides": rng.integers(1, 5, rank).tolist()}
    auto = str(rng.choice(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if auto == "NOTSET":
        how["pads"] = [int(rng.integers(0, max(k, 1))) for k in (*kernel, *kernel)]
        how["dilations"] = rng.integers(1, 3, rank).tolist()
    else:
        how["auto_pad"] = auto
    if pooling and rng.random() < 0.5:
        how["ceil_mode"] = 1
    return how


def conv(rng: Rng) -> Drawn:
    rank = int(rng.integers(1, 4))
    groups = int(rng.choice([1, 2]))
    s = (1, 2 * groups, *(int(n) for n in rng.integers(3, 8, rank)))
    kernel = rng.integers(1, 4, rank).tolist()
    w, b = f(3 * groups, 2, *kernel), f(3 * groups)
    return (
        [("Conv", ["x", "w", "b"], {"group": groups, **geometry(rng, s, kernel, pooling=False)})],
        {"w": w, "b": b},
        s,
        13,
    )


def conv_transpose(rng: Rng) -> Drawn:
    rank = int(rng.integers(1, 3))
    groups = int(rng.choice([1, 2]))
    s = (1, 2 * groups, *(int(n) for n in rng.integers(2, 5, rank)))
    kernel = rng.integers(1, 4, rank).tolist()
    how = geometry(rng, s, kernel, pooling=False)
    dilations = how.get("dilations", [1] * rank)
    extra = [int(rng.integers(0, max(a, b))) for a, b in zip(how["strides"], dilations, strict=True)]
    if rng.random() < 0.5:
        how["output_padding"] = extra
    if rng.random() < 0.3:
        sizes = zip(s[2:], how["strides"], kernel, dilations, strict=True)
        how["output_shape"] = [max((n - 1) * a + (k - 1) * d + 1 - int(rng.integers(0, 3)), 1) for n, a, k, d in sizes]
    return [("ConvTranspose", ["x", "w"], {"group": groups, **how})], {"w": f(2 * groups, 3, *kernel)}, s, 13


def pool(rng: Rng) -> Drawn:
    rank = int(rng.integers(1, 4))
    s = (1, 2, *(int(n) for n in rng.integers(4, 9, rank)))
    kernel = rng.integers(1, 4, rank).tolist()
    how = geometry(rng, s, kernel, pooling=True)
    if rng.random() < 0.5:
        return [("MaxPool", ["x"], {"kernel_shape": kernel, **how})], {}, s, int(rng.choice([10, 12, 22]))
    how["count_include_pad"] = int(rng.integers(0, 2))
    opset = 19 if "dilations" in how else int(rng.choice([10, 11, 22]))
    return [("AveragePool", ["x"], {"kernel_shape": kernel, **how})], {}, s, opset


def matmul(rng: Rng) -> Drawn:
    s = shape(rng, low=2, high=4)
    left = rng.random() < 0.5
    ones = (1,) * int(rng.integers(0, 3))
    if left:
        c = f(*ones, 3, s[-2]) if rng.random() < 0.7 else f(s[-2])
        return [("MatMul", ["c", "x"], {})], {"c": c}, s, 13
    c = f(*ones, s[-1], 3) if rng.random() < 0.7 else f(s[-1])
    return [("MatMul", ["x", "c"], {})], {"c": c}, s, 13


def gemm(rng: Rng) -> Drawn:
    flips = {"transA": int(rng.integers(0, 2)), "transB": int(rng.integers(0, 2))}
    how = {"alpha": float(rng.choice([1.0, 0.3])), "beta": float(rng.choice([1.0, -2.0])), **flips}
    s = (1, 4)  # the activation: A or B
    if rng.random() < 0.5:
        inner, rows = (1, 4) if flips["transA"] else (4, 1)
        w, columns = f(3, inner) if flips["transB"] else f(inner, 3), 3
        names = ["x", "w", "c"]
    else:
        inner, columns = (4, 1) if flips["transB"] else (1, 4)
        w, rows = f(inner, 3) if flips["transA"] else f(3, inner), 3
        names = ["w", "x", "c"]
    c = [f(rows, columns), f(columns), f(rows, 1), f(1, columns), f(1), np.float32(0.7)][rng.integers(6)]
    return [("Gemm", names, how)], {"w": w, "c": c}, s, 13


def arithmetic(rng: Rng) -> Drawn:
    s = shape(rng)
    size = [n if rng.random() < 0.6 else 1 for n in s][int(rng.integers(0, len(s))) :]
    if rng.random() < 0.3:
        size = [2, *s]
    op = str(rng.choice(["Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean", "PRelu"]))
    names = ["x", "c"] if op in ("Div", "PRelu") or rng.random() < 0.5 else ["c", "x"]
    return [(op, names, {})], {"c": f(*size)}, s, 13


def reduce(rng: Rng) -> Drawn:
    s = shape(rng)
    axes = rng.permutation(len(s))[: rng.integers(1, len(s) + 1)]
    axes = np.where(rng.random(len(axes)) < 0.5, axes, axes - len(s)).tolist()
    op = str(rng.choice(["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin"]))
    return [(op, ["x"], {"axes": axes, "keepdims": int(rng.integers(0, 2))})], {}, s, 11


def branches(rng: Rng) -> Drawn:
    """Two activations of different shapes meet."""
    s = (1, 3, 4)
    op = str(rng.choice(["Add", "Sub", "Max", "Min", "Sum", "Mean"]))
    first = [("Slice", ["x", "z", "one", "axis"], {}), ("Relu", ["x"], {}), ("Transpose", ["x"], {"perm": [0, 2, 1]})]
    names = [["t0", "t1"], ["t1", "t0"], ["t0", "x"], ["x", "t0", "t1", "c"]][
        rng.integers(4 if op not in ("Sub", "Add") else 3)
    ]
    constants = {"z": i64(0), "one": i64(1), "axis": i64(rng.integers(1, 3)), "c": f(3, 1)}
    return [*first[:2], (op, names, {})], constants, s, 13


FAMILIES: list[Callable[[Rng], Drawn]] = [
    *(slice_, slice_old, gather, gather_elements, gather_nd, pad, pad_axes, unsqueeze, squeeze, reshape, flatten),
    *(transpose, tile, expand, concat, blocks, resize, conv, conv_transpose, pool, matmul, gemm, arithmetic),
    *(reduce, branches),
]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_it_is_what_onnxruntime_computes(family: Callable[[Rng], Drawn]) -> None:
    rng = np.random.default_rng(0)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    compared = 0
    for _ in range(TRIES):
        steps, constants, size, opset = family(rng)
        data = chain(steps, constants, size, opset).SerializeToString()
        try:
            network = read_network(data, Before(), "kept")
        except Rejected:
            continue
        x = rng.uniform(-2, 2, size).astype(np.float32)
        try:
            session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
            (theirs,) = session.run(None, {"x": x})
        except Exception:  # what the runtime refuses means nothing
            continue
        found = evaluate(network, x.astype(np.float64))[-1]
        assert found.size == theirs.size, (steps, size)
        np.testing.assert_allclose(
            found, theirs.reshape(-1), rtol=1e-4, atol=1e-4, err_msg=str((steps, constants, size))
        )
        compared += 1
    assert compared >= TRIES // 8, f"only {compared} of {TRIES} could be compared"
