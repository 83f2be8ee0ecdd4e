"""Real VNN-LIB files parse, and witnesses are written in VNN-COMP's form."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from certify.errors import PropertyError
from certify.frontends.vnn_spec import format_witness, load_property
from certify.property import Box

# The pattern by which VNN-COMP style scorers read a witness.
PAIR = re.compile(r"\(\s*([XY]_\d+)\s+([-+0-9.eE]+)\s*\)")


def test_witness_by_hand() -> None:
    x, y = np.array([[0.5, -2]], dtype=np.float32), np.array([1e-30], dtype=np.float64)
    assert format_witness(x, y) == "((X_0 0.5)\n (X_1 -2.0)\n (Y_0 1e-30))"


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1, max_size=4))
def test_witness_reads_back_to_the_same_numbers(values: list[float]) -> None:
    text = format_witness(np.array(values, dtype=np.float32), np.array(values))
    pairs = PAIR.findall(text)
    assert [name for name, _ in pairs] == [f"{kind}_{i}" for kind in "XY" for i in range(len(values))]
    assert [float(value) for _, value in pairs] == [*map(float, np.array(values, dtype=np.float32)), *values]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_witness_must_be_finite(value: float) -> None:
    with pytest.raises(PropertyError, match="Y_0"):
        format_witness(np.zeros(1), np.array([value]))


def test_every_benchmark_file_parses(shared: Path) -> None:
    files = [p for p in sorted((shared / "bench").glob("*/*")) if p.name.endswith((".vnnlib", ".vnnlib.gz"))]
    assert len(files) > 50
    for path in files:
        inputs, outputs = _sizes(path)
        prop = load_property(path, (inputs,), outputs)
        for case in prop.cases:
            assert isinstance(case.inputs, Box)
            assert case.inputs.lower.shape == (inputs,)
            assert (case.inputs.lower <= case.inputs.upper).all()
            assert all(np.isfinite(polytope.coeff).all() for polytope in case.unsafe)


def _sizes(path: Path) -> tuple[int, int]:
    import gzip

    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
    return tuple(len(set(re.findall(rf"declare-const ({kind}_\d+)", text))) for kind in "XY")  # type: ignore[return-value]
