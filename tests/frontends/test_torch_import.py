"""graph_from_torch: every op answers as torch does, the module stays untouched, gradients reach its parameters."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional

from certify.bounding.interval import ibp
from certify.errors import ImportMismatch, ModelError, UnsupportedOps
from certify.frontends.torch_import import from_torch, graph_from_torch


class Call(nn.Module):
    """A function of x as a module."""

    def __init__(self, function: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(x)


def randomised(module: nn.Module) -> nn.Module:
    """Running statistics as after training, not 0 and 1."""
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(torch.linspace(-0.5, 0.5, len(buffer)))
        elif name.endswith("running_var"):
            buffer.copy_(torch.linspace(0.5, 2.0, len(buffer)))
    return module


FLAT, LINE, IMAGE = (6,), (4, 9), (4, 6, 7)
W = torch.arange(18, dtype=torch.float64).reshape(3, 6) / 7 - 1
C = torch.tensor([0.5, -1.0, 2.0, -0.25], dtype=torch.float64)

MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(6, 3), FLAT),
    "linear without bias, on more axes": (lambda: nn.Linear(9, 3, bias=False), LINE),
    "conv1d": (lambda: nn.Conv1d(4, 2, 3, stride=2, padding=1), LINE),
    "conv2d": (lambda: nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding=(2, 1), dilation=(2, 1), groups=2), IMAGE),
    "conv2d same": (lambda: nn.Conv2d(4, 2, (4, 3), padding="same"), IMAGE),
    "conv2d valid": (lambda: nn.Conv2d(4, 2, 3, padding="valid"), IMAGE),
    "conv2d circular": (lambda: nn.Conv2d(4, 2, 3, padding=1, padding_mode="circular"), IMAGE),
    "conv_transpose1d": (lambda: nn.ConvTranspose1d(4, 2, 3, stride=2, padding=1, output_padding=1), LINE),
    "conv_transpose2d": (
        lambda: nn.ConvTranspose2d(4, 6, 3, stride=(2, 1), padding=(1, 2), groups=2, dilation=2),
        IMAGE,
    ),
    "batch_norm1d": (lambda: nn.BatchNorm1d(6), FLAT),
    "batch_norm2d": (lambda: nn.Sequential(nn.Conv2d(4, 3, 1), nn.BatchNorm2d(3), nn.ReLU()), IMAGE),
    "batch_norm without affine": (lambda: nn.BatchNorm2d(4, affine=False), IMAGE),
    "relu in place": (lambda: nn.Sequential(nn.Linear(6, 4), nn.ReLU(inplace=True)), FLAT),
    "leaky_relu": (lambda: nn.LeakyReLU(0.2), FLAT),
    "prelu": (lambda: nn.PReLU(4), IMAGE),
    "relu6": (lambda: nn.Sequential(nn.Linear(6, 4), nn.ReLU6()), FLAT),
    "hardtanh": (lambda: nn.Hardtanh(-0.3, 0.7), FLAT),
    "sigmoid": (nn.Sigmoid, FLAT),
    "tanh": (nn.Tanh, FLAT),
    "max_pool1d": (lambda: nn.MaxPool1d(3, 2, 1), LINE),
    "max_pool2d": (lambda: nn.MaxPool2d((3, 2), stride=2, padding=1, dilation=(1, 2)), IMAGE),
    "max_pool2d ceil": (lambda: nn.MaxPool2d(3, 2, ceil_mode=True), IMAGE),
    "avg_pool1d": (lambda: nn.AvgPool1d(2), LINE),
    "avg_pool2d": (lambda: nn.AvgPool2d(3, 2, 1), IMAGE),
    "avg_pool2d ceil": (lambda: nn.AvgPool2d(3, 2, 1, ceil_mode=True), IMAGE),
    "avg_pool2d without padding cells": (lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False), IMAGE),
    "adaptive_avg_pool to 1": (lambda: nn.AdaptiveAvgPool2d(1), IMAGE),
    "adaptive_avg_pool even": (lambda: nn.AdaptiveAvgPool2d((3, 7)), IMAGE),
    "dropout": (lambda: nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5)), FLAT),
    "flatten": (nn.Flatten, IMAGE),
    "unflatten": (lambda: nn.Unflatten(1, (2, 3)), FLAT),
    "zero padding": (lambda: nn.ZeroPad2d((1, 0, 2, 1)), IMAGE),
    "constant padding": (lambda: nn.ConstantPad1d(1, 0.5), LINE),
    "reflection padding": (lambda: nn.ReflectionPad2d(2), IMAGE),
    "weight norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(6, 3)), FLAT),
}

FUNCTIONS: dict[str, tuple[Callable[[torch.Tensor], Any], tuple[int, ...]]] = {
    "add": (lambda x: x + x.flip(1) + 1, FLAT),
    "add with alpha": (lambda x: torch.add(x, x.flip(1), alpha=-0.5), FLAT),
    "add a constant tensor": (lambda x: x + C.reshape(1, 4, 1, 1), IMAGE),
    "broadcast of two branches": (lambda x: x + x.mean((2, 3), keepdim=True), IMAGE),
    "sub": (lambda x: 2 * x - x.flip(1), FLAT),
    "rsub": (lambda x: 1.5 - x, FLAT),
    "mul": (lambda x: C.reshape(4, 1, 1) * x * 3, IMAGE),
    "div": (lambda x: (x - 0.1307) / 0.3081 / C.reshape(4, 1, 1), IMAGE),
    "neg": (lambda x: -x, FLAT),
    "matmul": (lambda x: x @ W.T, FLAT),
    "matmul with a vector": (lambda x: x @ W[0], FLAT),
    "matmul from the left": (lambda x: C.reshape(1, 4) @ x, LINE),
    "addmm": (lambda x: torch.addmm(W[:, 0], x, W.T, beta=0.5, alpha=2.0), FLAT),
    "abs": (lambda x: x.abs(), FLAT),
    "maximum": (lambda x: torch.maximum(x, x.flip(1)), FLAT),
    "minimum": (lambda x: torch.minimum(x, x.flip(1)), FLAT),
    "maximum with a constant": (lambda x: torch.maximum(x, torch.tensor(0.1, dtype=x.dtype)), FLAT),
    "clamp": (lambda x: x.clamp(-0.2, 0.4), FLAT),
    "clamp one side": (lambda x: x.clamp(min=0.1) + x.clamp(max=0.2), FLAT),
    "clip to tensors": (lambda x: torch.clamp(x, min=C.reshape(1, 4, 1, 1)), IMAGE),
    "sum": (lambda x: x.sum((1, -1)), IMAGE),
    "mean": (lambda x: x.mean(dim=(-2, -1)), IMAGE),
    "cat": (lambda x: torch.cat([x, -x], dim=1), IMAGE),
    "stack": (lambda x: torch.stack([x, -x], dim=2), LINE),
    "chunk": (lambda x: torch.cat(x.chunk(2, 1)[::-1], 1), IMAGE),
    "split": (lambda x: x.split([1, 3], 1)[1], IMAGE),
    "unbind": (lambda x: x.unbind(1)[2], LINE),
    "slice": (lambda x: x[:, 1:, ::2, -3:], IMAGE),
    "select": (lambda x: x[:, -1], IMAGE),
    "index": (lambda x: x[:, [2, 0, 2]], IMAGE),
    "index_select": (lambda x: torch.index_select(x, 2, torch.tensor([1, 1, 3])), IMAGE),
    "permute": (lambda x: x.permute(0, 2, 3, 1), IMAGE),
    "transpose": (lambda x: x.transpose(-1, 1), IMAGE),
    "view": (lambda x: x.view(x.size(0), -1), IMAGE),
    "reshape": (lambda x: x.reshape(-1, 2, 3), FLAT),
    "squeeze and unsqueeze": (lambda x: x.unsqueeze(1).unsqueeze(-1).squeeze(), FLAT),
    "expand": (lambda x: x.unsqueeze(1).expand(-1, 3, -1), FLAT),
    "flip": (lambda x: x.flip((1, 3)), IMAGE),
    "in place with a later reader": (lambda x: functional.relu_(y := x * 1) + y, FLAT),
    "max pool, functional": (lambda x: functional.max_pool2d(x, 2, return_indices=False), IMAGE),
}

CASES = [
    *(pytest.param(make, shape, id=name) for name, (make, shape) in MODULES.items()),
    *(pytest.param(lambda f=f: Call(f), shape, id=name) for name, (f, shape) in FUNCTIONS.items()),
]


@pytest.mark.parametrize(("make", "shape"), CASES)
def test_the_graph_answers_as_the_module_does_and_intervals_hold_it(
    make: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    module = randomised(make().double())
    x = torch.randn(5, *shape, dtype=torch.float64)
    graph = graph_from_torch(module, x[:1])
    with torch.no_grad():
        expected = module.eval()(x)
        assert graph(x).shape == expected.shape
        torch.testing.assert_close(graph(x), expected, rtol=1e-12, atol=1e-12)
        lower, upper = ibp(graph, x[:1] - 0.3, x[:1] + 0.3)[-1]
        y = module(x[:1] + 0.6 * torch.rand(64, *shape, dtype=torch.float64) - 0.3)
        assert bool(((lower <= y + 1e-12) & (y <= upper + 1e-12)).all())


def test_every_submodules_mode_is_restored_also_after_an_error() -> None:
    module = nn.Sequential(nn.Linear(6, 4), nn.Dropout(), nn.GELU()).train()
    module[1].eval()
    for wrong in (module, None):
        if wrong is None:
            module[2] = nn.ReLU()
            graph_from_torch(module, torch.zeros(1, 6))
        else:
            with pytest.raises(UnsupportedOps):
                graph_from_torch(module, torch.zeros(1, 6))
        assert [part.training for part in module.modules()] == [True, True, False, True]


def test_parameters_and_gradients_are_left_alone() -> None:
    torch.manual_seed(0)
    module = randomised(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    graph_from_torch(module, torch.randn(3, 6))
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in module.parameters())


def test_gradients_of_bounds_reach_every_parameter_and_are_those_of_finite_differences() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).double()
    randomised(module)
    x = torch.randn(2, 3, dtype=torch.float64)

    def width() -> torch.Tensor:
        lower, upper = ibp(graph_from_torch(module, x), x - 0.1, x + 0.1)[-1]
        return (upper - lower).sum()

    width().backward()
    weight = module[0].weight
    step = torch.zeros_like(weight)
    step[1, 2] = 1e-6
    with torch.no_grad():
        weight += step
        above = float(width())
        weight -= 2 * step
        below = float(width())
    assert float(weight.grad[1, 2]) == pytest.approx((above - below) / 2e-6, rel=1e-5)
    reached = [p.grad is not None for name, p in module.named_parameters() if name != "3.bias"]
    assert all(reached)


def test_a_second_call_sees_new_parameters_and_a_new_structure() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 4), nn.LeakyReLU(0.1), nn.Linear(4, 2))
    x = torch.randn(4, 6)
    graph_from_torch(module, x)
    with torch.no_grad():
        module[0].weight.mul_(-2)
        torch.testing.assert_close(graph_from_torch(module, x)(x), module(x))
        module[1].negative_slope = 0.5
        torch.testing.assert_close(graph_from_torch(module, x)(x), module(x))
        module[1] = nn.Tanh()
        torch.testing.assert_close(graph_from_torch(module, x)(x), module(x))
        module.double()
        torch.testing.assert_close(graph_from_torch(module, x)(x.double()), module(x.double()))


def test_hooks_and_other_attributes_are_part_of_the_structure() -> None:
    x = torch.randn(4, 6)
    module = Call(lambda x: 2 * x)
    graph_from_torch(module, x)
    module.function = lambda x: 3 * x
    torch.testing.assert_close(graph_from_torch(module, x)(x), 3 * x)
    module.register_forward_hook(lambda module, inputs, output: output + 1)
    torch.testing.assert_close(graph_from_torch(module, x)(x), 3 * x + 1)


def test_unregistered_tensors_may_change() -> None:
    module = Call(torch.relu)
    module.shift = torch.ones(6)
    module.function = lambda x: x + module.shift
    x = torch.randn(4, 6)
    graph_from_torch(module, x)
    module.shift.mul_(5)
    torch.testing.assert_close(graph_from_torch(module, x)(x), x + 5)
    module.shift = torch.full((6,), 7.0)
    torch.testing.assert_close(graph_from_torch(module, x)(x), x + 7)


def test_a_dtype_without_known_rounding_is_refused() -> None:
    with pytest.raises(ModelError, match="bfloat16"):
        graph_from_torch(nn.Linear(6, 2).bfloat16(), torch.zeros(1, 6))


def test_a_gradient_switch_inside_the_forward_gives_a_graph_or_a_clear_error() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            y = x * 2
        return y + x

    x = torch.randn(3, 6)
    try:
        graph = graph_from_torch(Call(function), x)
    except ModelError:
        return
    torch.testing.assert_close(graph(x), 3 * x)


def test_lowering_again_takes_milliseconds() -> None:
    module = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)
    )
    x = torch.zeros(1, 1, 8, 8)
    graph_from_torch(module, x)
    fastest = min(_seconds(lambda: graph_from_torch(module, x)) for _ in range(10))
    assert fastest < 0.02  # measured: 1 ms; exporting anew takes 100 ms


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def test_unsupported_ops_are_listed_all_at_once_with_advice() -> None:
    module = nn.Sequential(nn.Linear(6, 4), nn.GELU(), nn.LayerNorm(4), nn.Softmax(dim=1))
    with pytest.raises(UnsupportedOps) as caught:
        graph_from_torch(module, torch.zeros(1, 6))
    message = str(caught.value)
    assert "gelu" in message
    assert "layer_norm" in message
    assert "return the logits" in message


def test_random_constants_are_refused() -> None:
    with pytest.raises(UnsupportedOps, match="random"):
        graph_from_torch(Call(lambda x: x + torch.rand(6)), torch.zeros(1, 6))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x - x.mean(0),
        lambda x: x.mean(),
        lambda x: x.T,
        lambda x: x.reshape(-1),
        lambda x: x[:1],
        lambda x: x + torch.arange(12.0).reshape(2, 6),
        lambda x: x.flip(0),
        lambda x: torch.cat([x, x]),
        lambda x: x.unsqueeze(0),
        lambda x: x * x,
        lambda x: x @ x.T,
        lambda x: torch.zeros(2, 3),
        lambda x: (x, x),
        lambda x: x if float(x.sum()) > 0 else -x,
        lambda x: 1 / x,
    ],
)
def test_what_mixes_samples_or_is_no_network_is_refused(function: Callable[[torch.Tensor], Any]) -> None:
    with pytest.raises(ModelError):
        graph_from_torch(Call(function), torch.ones(2, 6))


def test_a_forward_that_depends_on_the_batch_size_is_found_out() -> None:
    with pytest.raises(ImportMismatch, match="batch"):
        graph_from_torch(Call(lambda x: x * float(x.shape[0])), torch.ones(1, 6))


def test_an_example_without_batch_is_refused() -> None:
    with pytest.raises(ModelError, match="batch"):
        graph_from_torch(nn.Linear(6, 2), torch.zeros(6))


def test_buffers_that_the_forward_changes_are_refused() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.count += 1
            return x * self.count

    with pytest.raises(ModelError, match="buffer"):
        graph_from_torch(Counting(), torch.zeros(1, 6))


def test_a_weight_that_is_not_a_number_is_refused() -> None:
    module = nn.Linear(6, 2)
    with torch.no_grad():
        module.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match="NaN"):
        graph_from_torch(module, torch.zeros(1, 6))


def test_a_model_holds_the_module_and_its_normalisation_as_onnx() -> None:
    torch.manual_seed(0)
    module = randomised(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 5))
    ).train()
    x = torch.rand(4, 3, 6, 6)
    model = from_torch(module, x[:1], mean=[0.4, 0.5, 0.6], std=0.5)
    assert module.training
    assert model.source == "Sequential"
    with torch.no_grad():
        expected = module.eval()((x - torch.tensor([0.4, 0.5, 0.6]).reshape(3, 1, 1)) / 0.5)
    torch.testing.assert_close(torch.from_numpy(model.graph(x.numpy().astype("float64"))).float(), expected)
    session = onnxruntime.InferenceSession(model.onnx_bytes, providers=["CPUExecutionProvider"])
    (replayed,) = session.run(None, {model.input_name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(replayed), expected)
