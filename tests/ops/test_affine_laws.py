"""Laws of every affine op: it is what its definition says, its transpose is its transpose, numpy and torch agree."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from exact import affine_image, exact, forward, matrices
from op_cases import AFFINE_CASES, MAX_OF_TWO, OpCase, box_around, conv_cases, deconv_cases, nasty, reweighted

from certify import ops, rules
from certify.ops.base import Weighted

LIBRARIES = ["numpy", "torch"]
every_case = pytest.mark.parametrize("case", AFFINE_CASES, ids=lambda c: c.name)
# MaxOfTwo's interval uses r = relu(a - b), which its plain affine image does not know: it has its own law below.
BOXED_CASES = [case for case in AFFINE_CASES if case is not MAX_OF_TWO]
every_library = pytest.mark.parametrize("library", LIBRARIES)


def as_library(x, library):
    return x if library == "numpy" else torch.as_tensor(x.copy())


def small_integers(rng, shape):
    """Floats on which every sum and product here is exact, in any order."""
    return rng.integers(-8, 9, size=shape).astype(np.float64)


def integer_op(case, rng):
    if not isinstance(case.op, Weighted):
        return case.op
    shift = None if case.op.bias is None else small_integers(rng, case.op.bias.shape)
    return reweighted(case.op, small_integers(rng, case.op.weight.shape), shift)


def inputs(case, rng, count=2):
    return [small_integers(rng, (count, *shape)) for shape in case.shapes]


@every_library
@every_case
def test_evaluate_is_the_definition_exactly_on_integers(case: OpCase, library):
    rng = np.random.default_rng(3)
    op = integer_op(case, rng)
    xs = inputs(case, rng)
    sample = as_library(np.zeros(1), library)
    got = rules.evaluate(rules.cast(op, sample), *(as_library(x, library) for x in xs))
    for b in range(2):
        want = forward(op, *(exact(x[b]) for x in xs))
        assert got[b].shape == want.shape
        assert (exact(got[b]) == want).all()


@every_library
@every_case
def test_linear_is_evaluate_without_the_bias(case: OpCase, library):
    rng = np.random.default_rng(4)
    op = rules.cast(integer_op(case, rng), as_library(np.zeros(1), library))
    xs = [as_library(x, library) for x in inputs(case, rng)]
    shift = rules.bias(op)
    y = rules.linear(op, *xs)
    assert bool((rules.evaluate(op, *xs) == (y if shift is None else y + shift)).all())


@every_library
@every_case
def test_transpose_is_the_adjoint_exactly_on_integers(case: OpCase, library):
    """<transpose(a), x> = <a, linear(x)> for each operand."""
    rng = np.random.default_rng(5)
    op = rules.cast(integer_op(case, rng), as_library(np.zeros(1), library))
    xs = [as_library(x, library) for x in inputs(case, rng)]
    y = rules.linear(op, *xs)
    a = as_library(small_integers(rng, tuple(y.shape)), library)
    parts = rules.transpose(op, a, case.shapes)
    assert [tuple(p.shape) for p in parts] == [tuple(x.shape) for x in xs]
    for b in range(2):
        left = sum(float((p[b] * x[b]).sum()) for p, x in zip(parts, xs, strict=True))
        assert left == float((a[b] * y[b]).sum())


@every_library
@every_case
def test_transpose_of_unit_rows_is_the_dense_matrix(case: OpCase, library):
    """All rows at once, on the op's own real-valued weights: no sum is involved, so every entry is exact."""
    op = rules.cast(case.op, as_library(np.zeros(1), library))
    dense = matrices(case.op, case.shapes)
    shape = forward(case.op, *(exact(np.zeros(s)) for s in case.shapes)).shape
    rows = as_library(np.eye(int(np.prod(shape))).reshape(-1, *shape), library)
    for part, matrix in zip(rules.transpose(op, rows, case.shapes), dense, strict=True):
        assert (exact(part.reshape(part.shape[0], -1)) == matrix).all()


@every_case
def test_absolute_has_the_absolute_matrix_and_bias(case: OpCase):
    got = matrices(rules.absolute(case.op), case.shapes)
    for part, matrix in zip(got, matrices(case.op, case.shapes), strict=True):
        assert (part == np.abs(matrix)).all()
    shift = rules.bias(case.op)
    if shift is not None:
        assert (rules.bias(rules.absolute(case.op)) == np.abs(shift)).all()


@every_case
def test_terms_counts_at_least_the_products_of_any_row_or_column(case: OpCase):
    """gamma_n covers a sum of n products: n is at least what really meets in one number, in either direction."""
    dense = matrices(case.op, case.shapes)
    longest_row = int((np.concatenate(dense, axis=1) != 0).sum(axis=1).max())
    longest_column = max(int((m != 0).sum(axis=0).max()) for m in dense)
    assert rules.terms(case.op, case.shapes) >= max(longest_row, longest_column)


@every_case
def test_numpy_and_torch_agree(case: OpCase):
    rng = np.random.default_rng(6)
    xs = [rng.standard_normal((3, *shape)) for shape in case.shapes]
    here = rules.evaluate(case.op, *xs)
    there = rules.evaluate(rules.cast(case.op, torch.zeros(1, dtype=torch.float64)), *map(torch.as_tensor, xs))
    np.testing.assert_allclose(here, there.numpy(), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("case", [*conv_cases(), *deconv_cases()], ids=lambda c: c.name)
def test_convolutions_agree_with_onnxruntime(case: OpCase):
    ort = pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper, numpy_helper

    op, shape = case.op, case.shapes[0]
    rank = len(op.stride)
    kind = "Conv" if isinstance(op, ops.Conv) else "ConvTranspose"
    how = {"strides": op.stride, "dilations": op.dilation, "group": op.groups, "pads": op.pads}
    if kind == "ConvTranspose":
        full = [
            (n - 1) * s + (k - 1) * d + 1
            for n, s, k, d in zip(shape[1:], op.stride, op.weight.shape[2:], op.dilation, strict=True)
        ]
        how["output_padding"] = [
            o - (f - b - e) for o, f, b, e in zip(op.out_spatial, full, op.pads[:rank], op.pads[rank:], strict=True)
        ]
    x = np.random.default_rng(7).standard_normal((1, *shape)).astype(np.float32)
    constants = [
        numpy_helper.from_array(op.weight.astype(np.float32), "w"),
        numpy_helper.from_array(op.bias.astype(np.float32).ravel(), "b"),
    ]
    graph = helper.make_graph(
        [helper.make_node(kind, ["x", "w", "b"], ["y"], **how)],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    want = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    got = rules.evaluate(op, x.astype(np.float64))
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def prepared(case, rng, dtype, errors):
    """The op with nasty constants of a dtype, optionally with stated errors."""
    op = case.op
    if not isinstance(op, Weighted):
        return op
    shift = None if op.bias is None else nasty(rng, op.bias.shape, dtype)
    op = reweighted(op, nasty(rng, op.weight.shape, dtype), shift)
    if not errors:
        return op
    stated = rng.choice([0.7, 1e-3, 1e-30, 0.1])
    slack = float(stated) if shift is None or rng.random() < 0.5 else np.full(shift.shape, stated).astype(dtype)
    return replace(op, weight_error=float(rng.choice([1e-3, 1e-9])), bias_error=slack)


@pytest.mark.parametrize("errors", [False, True], ids=["exact-constants", "stated-errors"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@every_library
@pytest.mark.parametrize("case", BOXED_CASES, ids=lambda c: c.name)
def test_interval_holds_the_exact_image(case: OpCase, library, dtype, errors):
    """The exact range over the box and over all constants within the stated errors: no tolerance, hostile numbers."""
    rng = np.random.default_rng([8, len(case.name)])
    for _ in range(2):
        op = prepared(case, rng, dtype, errors)
        boxes = [box_around(rng, nasty(rng, shape, dtype)) for shape in case.shapes]
        low, high = affine_image(op, boxes)
        sample = as_library(np.zeros(1, dtype=dtype), library)
        given = [tuple(as_library(side[None], library) for side in box) for box in boxes]
        lower, upper = rules.interval(rules.cast(op, sample), case.shapes, *given)
        assert str(lower.dtype).endswith(dtype)
        assert (exact(lower[0]) <= low).all()
        assert (exact(upper[0]) >= high).all()


@pytest.mark.parametrize("case", BOXED_CASES, ids=lambda c: c.name)
def test_interval_is_tight_on_ordinary_numbers(case: OpCase):
    """Rounding outward costs no more than rounding: the float64 interval is the exact one to 1e-12."""
    rng = np.random.default_rng(9)
    boxes = []
    for shape in case.shapes:
        center = rng.standard_normal(shape)
        boxes.append((center - rng.random(shape), center + rng.random(shape)))
    low, high = affine_image(case.op, boxes)
    lower, upper = rules.interval(case.op, case.shapes, *((a[None], b[None]) for a, b in boxes))
    np.testing.assert_allclose(lower[0], low.astype(np.float64), rtol=0, atol=1e-12)
    np.testing.assert_allclose(upper[0], high.astype(np.float64), rtol=0, atol=1e-12)


def test_interval_of_max_of_two_is_the_range_of_the_maximum():
    rng = np.random.default_rng(10)
    a, b = (tuple(np.sort(rng.standard_normal((2, 5)), axis=0)) for _ in range(2))
    gap = (np.maximum(a[0] - b[1], 0), np.maximum(a[1] - b[0], 0))
    lower, upper = rules.interval(ops.MaxOfTwo(), ((5,), (5,), (5,)), *((s[0][None], s[1][None]) for s in (a, b, gap)))
    assert (lower[0] == np.maximum(a[0], b[0])).all()
    assert (upper[0] == np.maximum(a[1], b[1])).all()
    for _ in range(200):
        x, y = rng.uniform(*a), rng.uniform(*b)
        assert (lower[0] <= np.maximum(x, y)).all()
        assert (np.maximum(x, y) <= upper[0]).all()
