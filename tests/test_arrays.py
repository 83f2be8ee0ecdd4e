"""What arrays promise about the machine's arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from exact import exact

from certify.arrays import (
    UNIT_ROUNDOFF,
    blend,
    computes_float32,
    convolve,
    convolve_transposed,
    depth,
    inner,
    multiply_columns,
)
from certify.bounding.margins import Networks
from certify.graph import Graph, Node
from certify.ops import Input, Relu

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE"):
        monkeypatch.delenv(name, raising=False)
    yield
    for kind in ("conv", "matmul"):
        if hasattr(torch.backends.mkldnn, kind):
            getattr(torch.backends.mkldnn, kind).fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")


def test_float32_is_trusted_as_torch_comes() -> None:
    assert computes_float32(CPU)
    assert not computes_float32(torch.device("cuda"))


FASTER: dict[str, Callable[[pytest.MonkeyPatch], object]] = {
    "matrix products": lambda patch: torch.set_float32_matmul_precision("medium"),
    "oneDNN's convolutions": lambda patch: setattr(torch.backends.mkldnn.conv, "fp32_precision", "bf16"),
    "oneDNN's matrix products": lambda patch: setattr(torch.backends.mkldnn.matmul, "fp32_precision", "bf16"),
    "the environment": lambda patch: patch.setenv("ONEDNN_DEFAULT_FPMATH_MODE", "BF16"),
    "the environment, by its older name": lambda patch: patch.setenv("DNNL_DEFAULT_FPMATH_MODE", "any"),
}


@pytest.mark.parametrize("what", FASTER)
def test_no_float32_bound_where_operands_may_be_rounded_further(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Regression: only the precision of matrix products was asked for, and some settings made the question raise."""
    if what.startswith("oneDNN") and not hasattr(torch.backends.mkldnn, "conv"):
        pytest.skip("this torch has no such setting")
    FASTER[what](monkeypatch)
    graph = Graph((Node("x", Input(), (), (1,)), Node("y", Relu(), (0,), (1,))))
    assert not computes_float32(CPU)
    assert Networks.of(graph, CPU).draft is None


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("rows", "count"), [(3, 1), (3, 2), (3, 7), (2, 100), (2, 1000), (950, 129), (60, 2100)])
def test_no_product_of_an_inner_sum_meets_more_roundings_than_stated(rows, count, dtype, library):
    """|inner - sum a v| <= gamma_depth sum |a v|, exactly, also where matrix-vector products take over; two vectors."""
    rng = np.random.default_rng([70, count])
    a, v = (rng.standard_normal((2, n, count)).astype(dtype) for n in (rows, 1))
    give = (lambda x: x) if library == "numpy" else torch.tensor
    got = np.asarray(inner(give(a), give(v)))
    steps = depth(count, dtype) * UNIT_ROUNDOFF[dtype]
    some = [(b, s) for b in (0, 1) for s in {0, rows - 1}]
    for b, s in some:
        products = exact(a[b, s]) * exact(v[b, 0])
        assert (
            abs(exact(got[b, s : s + 1])[0] - products.sum()) <= abs(products).sum() * exact(steps / (1 - steps)).item()
        )
    np.testing.assert_allclose(got, (a.astype(np.float64) * v).sum(axis=-1), atol=1e-3 if dtype == "float32" else 1e-9)


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_blends_and_products_of_some_columns_by_hand(library):
    give = np.array if library == "numpy" else torch.tensor
    a, b = give([[1.0, 2.0]]), give([[3.0, 4.0]])
    assert blend(a, give([10.0, 1.0]), b, give([1.0, 0.5])).tolist() == [[13.0, 4.0]]
    out = give([[0.0, 0.0]])
    multiply_columns(give([[1.0, 7.0, 2.0]]), give([0, 2]), give([[1.0, 2.0], [3.0, 4.0]]), out)
    assert out.tolist() == [[7.0, 10.0]]


def test_blends_keep_what_gradients_need():
    a = torch.tensor([1.0, 2.0], requires_grad=True)
    s = torch.tensor([10.0, 1.0], requires_grad=True)
    positive = a * 1
    blend(positive, s, a - positive, s).sum().backward()
    assert a.grad.tolist() == [10.0, 1.0]
    assert s.grad.tolist() == [1.0, 2.0]
    assert positive.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("seed", range(60))
def test_strided_transposed_convolutions_are_adjoint(seed):
    """<conv(x), a> = <x, conv^T(a)> for any stride, padding, dilation and kernel, rows in one piece or several."""
    rng = np.random.default_rng([71, seed])
    stride, dilation, kernel = (tuple(int(n) for n in rng.integers(1, top, 2)) for top in (4, 3, 5))
    pads = tuple(int(n) for n in rng.integers(0, 4, 4))
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    size = tuple(
        int(n) + max(1, r - b - e) for n, r, b, e in zip(rng.integers(0, 9, 2), reach, pads[:2], pads[2:], strict=True)
    )
    count = 2000 if seed % 20 == 0 else 5
    weight, x = torch.tensor(rng.standard_normal((3, 2, *kernel))), torch.tensor(rng.standard_normal((count, 2, *size)))
    y = convolve(x, weight, stride, pads, dilation, 1)
    a = torch.tensor(rng.standard_normal(tuple(y.shape)))
    back = convolve_transposed(a, weight, stride, pads, dilation, 1, size)
    assert back.shape == x.shape
    torch.testing.assert_close((y * a).sum(dim=(1, 2, 3)), (back * x).sum(dim=(1, 2, 3)))


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_transposed_convolutions_are_adjoint_exactly(rank, library):
    """On integers, with groups, and where whole windows lie in the padding, which torch cannot crop by itself."""
    give = np.asarray if library == "numpy" else torch.from_numpy
    rng = np.random.default_rng([72, rank])
    for case in range(300 // rank**2):
        groups = int(rng.integers(1, 3))
        stride, dilation, kernel, size = (tuple(int(n) for n in rng.integers(1, top, rank)) for top in (5, 3, 4, 5))
        pads = tuple(int(n) for n in rng.integers(0, 4, 2 * rank))
        if case == 0:
            stride, dilation, kernel, size, pads = (4,) * rank, (1,) * rank, (1,) * rank, (1,) * rank, (2, 0) * rank
        room = (n + b + e for n, b, e in zip(size, pads[:rank], pads[rank:], strict=True))
        if any(n < (k - 1) * d + 1 for n, k, d in zip(room, kernel, dilation, strict=True)):
            continue
        weight = give(rng.integers(-3, 4, (2 * groups, 2, *kernel)).astype(float))
        x = give(rng.integers(-3, 4, (2, 2 * groups, *size)).astype(float))
        y = convolve(x, weight, stride, pads, dilation, groups)
        a = give(rng.integers(-3, 4, tuple(y.shape)).astype(float))
        back = convolve_transposed(a, weight, stride, pads, dilation, groups, size)
        assert tuple(back.shape) == tuple(x.shape)
        assert float((y * a).sum()) == float((back * x).sum())
