"""ONNX export: what onnxruntime reads is the module, at any batch size, in one file, with nothing of this machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from certify.errors import CertifyError, DiskError, ModelError
from certify.frontends.torch_export import onnx_bytes
from certify.frontends.torch_import import from_torch, graph_from_torch
from certify.trainers.export import export_onnx

MAX_IR = 13  # what the oldest supported onnxruntime reads


@pytest.fixture(scope="module")
def module() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Flatten())
    return nn.Sequential(net, nn.Linear(64, 5)).train()


@pytest.fixture(scope="module")
def written(module: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    return export_onnx(
        module,
        torch.zeros(1, 3, 4, 4),
        folder / "net.onnx",
        metadata={"data": "cifar10", "input_range": "0,1", "seed": "7"},
        mean=[0.4, 0.5, 0.6],
        std=[0.2, 0.3, 0.4],
    )


@pytest.mark.parametrize("count", [1, 2, 7])
def test_onnxruntime_answers_as_the_normalised_module(written: Path, module: nn.Module, count: int) -> None:
    x = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(count))
    mean, std = torch.tensor([0.4, 0.5, 0.6]).reshape(3, 1, 1), torch.tensor([0.2, 0.3, 0.4]).reshape(3, 1, 1)
    session = onnxruntime.InferenceSession(written, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    module.eval()
    with torch.no_grad():
        expected = module((x - mean) / std).numpy()
    module.train()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_file_is_alone_and_has_the_metadata(written: Path) -> None:
    assert [p.name for p in written.parent.iterdir()] == ["net.onnx"]
    model = onnx.load(written)
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version <= MAX_IR
    assert {p.key: p.value for p in model.metadata_props} == {
        "certify.data": "cifar10",
        "certify.input_range": "0,1",
        "certify.seed": "7",
    }
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param


def test_nothing_of_the_machine_is_in_the_file(written: Path) -> None:
    content = written.read_bytes()
    assert b"site-packages" not in content
    assert str(Path(__file__).resolve().parents[2]).encode() not in content


def test_mode_and_parameters_are_left_alone(module: nn.Module) -> None:
    before = {name: value.clone() for name, value in module.state_dict().items()}
    first = onnx_bytes(module, torch.zeros(1, 3, 4, 4))
    assert all(part.training for part in module.modules())
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert first == onnx_bytes(module, torch.rand(5, 3, 4, 4)), "only the shape of the example matters"


def test_an_unwritable_target_leaves_nothing_behind(module: nn.Module, tmp_path: Path) -> None:
    target = tmp_path / "net.onnx"
    target.mkdir()
    with pytest.raises(DiskError, match=r"net\.onnx"):
        export_onnx(module, torch.zeros(1, 3, 4, 4), target, metadata={})
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]
    with pytest.raises(DiskError, match="No such file"):
        export_onnx(module, torch.zeros(1, 3, 4, 4), tmp_path / "missing" / "net.onnx", metadata={})


def test_a_failed_export_keeps_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "net.onnx"
    target.write_bytes(b"old")

    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if float(x.sum()) > 0 else -x

    with pytest.raises(ModelError, match="torch cannot export"):
        export_onnx(Branching(), torch.zeros(1, 4), target, metadata={})
    assert target.read_bytes() == b"old"


def test_a_module_of_another_shape_says_so_in_a_line(capfd: pytest.CaptureFixture[str]) -> None:
    wrong = r"cannot take samples of shape \(5,\): .* multiplied \(2x5 and 4x3\)"
    for convert in (from_torch, graph_from_torch):
        with pytest.raises(ModelError, match=wrong) as caught:
            convert(nn.Linear(4, 3), torch.zeros(1, 5))
        assert len(str(caught.value).splitlines()) == 1
    assert capfd.readouterr().err == "", "torch's exporters print pages"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": [0.1, 0.2]}, "3 channels"),
        ({"std": [0.0]}, "positive"),
        ({"mean": [float("nan")]}, "finite"),
        ({"metadata": {"sead": "1"}}, "sead"),
    ],
)
def test_wrong_options_are_named(module: nn.Module, tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(CertifyError, match=message):
        export_onnx(module, torch.zeros(1, 3, 4, 4), tmp_path / "net.onnx", **{"metadata": {}, **options})
    assert not list(tmp_path.iterdir())


def test_two_outputs_are_refused() -> None:
    class Two(nn.Module):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x, x + 1

    with pytest.raises(ModelError, match="2 outputs"):
        onnx_bytes(Two(), torch.zeros(1, 4))
