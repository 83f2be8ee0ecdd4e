"""A small property is decided without torch: its import takes longer than the whole of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

HEAVY = ("torch", "pandas", "scipy", "highspy")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """2 inputs, 8 ReLUs, y_0 = sum_k relu(w_k x) - 1 >= -1."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(3)
    first, last = rng.normal(size=(2, 8)).astype(np.float32), np.ones((8, 1), np.float32)
    nodes = [
        helper.make_node("Gemm", ["x", "W", "b"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "V", "c"], ["y"]),
    ]
    stored = {"W": first, "b": np.zeros(8, np.float32), "V": last, "c": -np.ones(1, np.float32)}
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1])],
        [numpy_helper.from_array(value, name) for name, value in stored.items()],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "net.onnx"
    )
    return tmp_path / "net.onnx"


def decide(network: Path, limit: float) -> tuple[str, str]:
    """The answer to "can y_0 <= limit?" on [-1, 1]^2, and which heavy modules were imported for it."""
    spec = network.with_name("prop.vnnlib")
    bounds = "".join(f"(assert (>= X_{i} -1.0))(assert (<= X_{i} 1.0))" for i in range(2))
    names = "".join(f"(declare-const {name} Real)" for name in ("X_0", "X_1", "Y_0"))
    spec.write_text(f"{names}{bounds}(assert (<= Y_0 {limit}))")
    script = (
        "import sys\nfrom certify.cli.main import cli\n"
        f"try: cli(['vnnlib', {str(network)!r}, {str(spec)!r}])\n"
        f"except SystemExit: pass\nprint([m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    answer, heavy = done.stdout.strip().split("\n")
    return answer, heavy


@pytest.mark.parametrize(("limit", "answer"), [(-1.1, "unsat"), (-0.999, "sat"), (-5.0, "unsat")])
def test_a_small_property_never_imports_torch(network: Path, limit: float, answer: str) -> None:
    assert decide(network, limit) == (answer, "[]")


def test_help_never_imports_torch() -> None:
    script = (
        "import sys\nfrom certify.cli.main import cli\n"
        f"try: cli(['--help'])\nexcept SystemExit: pass\nprint([m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip().split("\n")[-1] == "[]"
