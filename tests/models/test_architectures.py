"""Architectures have their papers' layers, fit any input and can be bounded; unknown names list the known."""

from __future__ import annotations

import math

import onnx
import pytest
import torch
from torch import nn

from certify.bounding.api import bounds
from certify.errors import UsageError
from certify.frontends.torch_export import evaluation, onnx_bytes
from certify.models.registry import ARCHITECTURES, build

# Parameters at width 1, counted by hand from the papers' tables or known from them.
SIZES = {
    "cnn-small": 166406,  # Wong & Kolter 2018: 16*17 + 32*(16*16+1) + 1568*100+100 + 1010
    "resnet18": 11_173_962,  # the CIFAR form that every repository states as 11.17 M
    "resnet110": 1_730_714,  # He et al. 2016, table 6: 1.7 M; with projections, as in the code of Cohen et al. 2019
    "wrn28-10": 36_479_194,  # Zagoruyko & Komodakis 2016, table 4: 36.5 M
}


@pytest.mark.parametrize("name", sorted(SIZES))
def test_parameters_are_as_many_as_published(name: str) -> None:
    shape = (1, 28, 28) if name == "cnn-small" else (3, 32, 32)
    assert sum(p.numel() for p in build(name, shape, 10).parameters()) == SIZES[name]


def test_cnn7_is_five_convolutions_and_two_dense_layers_with_batch_norm() -> None:
    module = build("cnn7", (1, 28, 28), 10)
    convolutions = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
    assert [c.out_channels for c in convolutions] == [64, 64, 128, 128, 128]
    assert [c.stride[0] for c in convolutions] == [1, 1, 2, 1, 1]
    dense = [m for m in module.modules() if isinstance(m, nn.Linear)]
    assert [(d.in_features, d.out_features) for d in dense] == [(128 * 14 * 14, 512), (512, 10)]
    assert sum(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in module.modules()) == 6


def test_batch_norm_of_the_small_network_is_folded_away() -> None:
    torch.manual_seed(0)
    files = []
    for name in ("cnn-small", "cnn-small-bn"):
        module = build(name, (1, 28, 28), 10).train()
        module(torch.randn(8, 1, 28, 28))  # statistics that are not those of a fresh layer
        graph = onnx.load_from_string(onnx_bytes(module, torch.rand(1, 1, 28, 28))).graph
        files.append(([n.op_type for n in graph.node], sorted(tuple(i.dims) for i in graph.initializer)))
    assert files[0] == files[1]


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_every_architecture_takes_other_shapes_and_widths_and_has_bounds(name: str) -> None:
    torch.manual_seed(0)
    module = build(name, (2, 8, 8), 3, width=1 / 16).double()
    module.eval()
    x = torch.rand(2, 2, 8, 8, dtype=torch.float64)
    with torch.no_grad(), evaluation(module):
        lower, upper = bounds(module, x, x + 1e-3, method="ibp")
        for point in (x, x + 1e-3):
            logits = module(point)
            assert logits.shape == (2, 3)
            assert bool(((lower <= logits) & (logits <= upper)).all())


def test_the_interval_initialisation_has_the_stated_variance() -> None:
    torch.manual_seed(0)
    layer = build("mlp", (100,), 10, width=4, init="interval")[1]
    assert isinstance(layer, nn.Linear)
    assert float(layer.weight.detach().std()) == pytest.approx(math.sqrt(2 * math.pi) / 100, rel=0.01)


def test_the_interval_initialisation_leaves_the_last_layer_alone() -> None:
    torch.manual_seed(0)
    last = build("mlp", (100,), 10, width=4, init="interval")[-1]
    assert isinstance(last, nn.Linear)
    assert float(last.weight.detach().abs().max()) <= 1 / math.sqrt(last.in_features), "torch's uniform weights"


def test_the_interval_initialisation_keeps_widths_and_the_default_one_does_not() -> None:
    growth = {}
    for init in ("default", "interval"):
        torch.manual_seed(0)
        module = build("mlp", (256,), 256, init=init)
        x = torch.rand(4, 256)
        lower, upper = bounds(module[:-1], x - 0.01, x + 0.01, method="ibp")  # type: ignore[index]
        growth[init] = (upper - lower).mean().item() / 0.02
    assert growth["interval"] < 4 < growth["default"]


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        (("cnn9", (1, 8, 8), 3), {}, "cnn7"),
        (("mlp", (4,), 3), {"init": "shi"}, "interval"),
        (("mlp", (4,), 3), {"width": 0.0}, "positive"),
        (("cnn3", (4,), 3), {}, "mlp"),
        (("resnet18", (4,), 3), {}, "mlp"),
        (("cnn-small", (1, 2, 2), 3), {}, "too small"),
    ],
)
def test_bad_input_is_told_what_there_is(arguments: tuple, options: dict, words: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(UsageError, match=words):
        build(*arguments, **options)
