"""`certify doctor` names what a network is made of and tries out the usual mistakes."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper

from certify.cli.main import cli


def call(*arguments: object) -> Result:
    result = CliRunner().invoke(cli, ["doctor", *map(str, arguments)])
    assert "Traceback" not in result.output
    return result


def rewrite(folder: Path, name: str, **arrays: np.ndarray) -> Path:
    stored = dict(np.load(folder / "data.npz"))
    np.savez(folder / name, **(stored | arrays))
    return folder / name


def test_a_healthy_network(linear: Path, exact: ModuleType) -> None:
    result = call(linear / "net.onnx", "--data", linear / "data.npz")
    assert result.exit_code == 0, result.output
    for text in (
        "Gemm",
        "parameters:  15",
        "ok, agrees with onnxruntime",
        "exact, by hand",
        "91.67%",
        "x [n, 4] float",
    ):
        assert text in result.stdout
    assert "warning" not in result.stdout


def test_labels_counted_from_one(linear: Path, exact: ModuleType) -> None:
    labels = np.load(linear / "data.npz")["y"] + 1
    result = call(linear / "net.onnx", "--data", rewrite(linear, "one.npz", y=labels))
    assert "labels off by one" in result.stdout
    assert "every label lowered by one" in result.stdout
    assert "labels run from 1 to 3, the network has classes 0 to 2" in result.stdout


def test_normalised_twice(linear: Path, exact: ModuleType) -> None:
    x = np.load(linear / "data.npz")["x"]
    data = rewrite(linear, "normal.npz", x=(x - 0.5) / 0.3)
    result = call(linear / "net.onnx", "--data", data, "--mean", "0.5", "--std", "0.3", "--input-range", "-2,2")
    assert "looks normalised twice" in result.stdout


def network(nodes: list[onnx.NodeProto], shape: list[int], classes: int) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, classes])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_an_import_that_fails_still_shows_the_ops(tmp_path: Path, exact: ModuleType) -> None:
    nodes = [
        helper.make_node("Softmax", ["x"], ["a"], name="inner"),
        helper.make_node("Erf", ["a"], ["b"], name="gelu"),
        helper.make_node("Relu", ["b"], ["y"], name="last"),
    ]
    onnx.save(network(nodes, [1, 3], 3), tmp_path / "net.onnx")
    result = call(tmp_path / "net.onnx")
    assert result.exit_code == 2
    assert "not supported" in result.stdout
    assert "Erf" in result.stdout
    assert "gelu" in result.stdout, "the node is named"
    assert "Softmax inside the network (node inner)" in result.stdout
    assert "FAILED" in result.stdout


def test_one_output_is_no_classifier(tmp_path: Path, exact: ModuleType) -> None:
    nodes = [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=1)]
    onnx.save(network(nodes, [1, 3], 1), tmp_path / "net.onnx")
    assert "certify vnnlib proves properties of it" in " ".join(call(tmp_path / "net.onnx").stdout.split())


def test_softmax_at_the_end_and_channels_last(tmp_path: Path, exact: ModuleType) -> None:
    nodes = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("Softmax", ["f"], ["y"], axis=-1)]
    onnx.save(network(nodes, [1, 4, 4, 3], 48), tmp_path / "net.onnx")
    result = call(tmp_path / "net.onnx")
    assert result.exit_code == 0, result.output
    assert "Softmax at the end" in result.stdout
    assert "as the last node" in result.stdout
    assert "looks like NHWC" in result.stdout


@pytest.mark.parametrize(("content", "message"), [(b"hello", "not an ONNX file"), (None, "no such file")])
def test_no_network_at_all(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "net.onnx").write_bytes(content)
    result = call(tmp_path / "net.onnx")
    assert result.exit_code == 2
    assert message in result.stderr
