"""Fixtures that every test folder shares."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

# The networks of tests are tiny: threads cost more than they bring, on a busy machine by a factor of ten.
os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED_VARIABLE = "CERTIFY_SHARED"
SHARED_REASON = "no shared benchmark files"


def shared_root() -> Path | None:
    """The folder of large benchmark files: $CERTIFY_SHARED, or `shared` beside the checkout; None if absent."""
    named = os.environ.get(SHARED_VARIABLE)
    root = Path(named) if named else Path(__file__).resolve().parents[2] / "shared"
    return root if (root / "bench").is_dir() else None


@pytest.fixture(scope="session")
def shared() -> Path:
    """The shared benchmark folder; the test is skipped, and counted at the end, where there is none."""
    root = shared_root()
    if root is None:
        pytest.skip(f"{SHARED_REASON}: set {SHARED_VARIABLE} to their folder")
    return root


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A stand-in for certify.pipeline with outcomes known beforehand (linear networks); see exact_pipeline.py."""
    path = Path(__file__).with_name("exact_pipeline.py")
    spec = importlib.util.spec_from_file_location("exact_pipeline", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "exact_pipeline", module)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, "certify.pipeline", module)
    return module


@pytest.fixture
def linear(tmp_path: Path) -> Path:
    """net.onnx, a linear network of 4 inputs and 3 classes; data.npz, 24 samples, the labels of ids 5 and 17 wrong."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(7)
    weight = rng.normal(size=(4, 3)).astype(np.float32)
    bias = -weight.sum(axis=0) / 2  # all boundaries meet in the middle of the input range
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "W", "b"], ["y"], name="gemm")],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(weight, "W"), numpy_helper.from_array(bias, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "net.onnx")
    x = rng.uniform(0, 1, size=(24, 4)).astype(np.float32)
    y = np.argmax(x @ weight + bias, axis=1)
    y[[5, 17]] = (y[[5, 17]] + 1) % 3
    np.savez(tmp_path / "data.npz", x=x, y=y)
    return tmp_path


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A skipped check is never a silent pass: say how many, and how to have them run."""
    skipped = [r for r in terminalreporter.stats.get("skipped", []) if SHARED_REASON in str(r.longrepr)]
    if skipped:
        terminalreporter.section("not run", sep="-", yellow=True)
        terminalreporter.line(
            f"{len(skipped)} tests on real benchmark files did not run: {SHARED_REASON}; "
            f"set {SHARED_VARIABLE} to their folder."
        )
