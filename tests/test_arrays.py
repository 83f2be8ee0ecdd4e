"""What arrays promise about the machine's arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from certify.arrays import computes_float32
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
