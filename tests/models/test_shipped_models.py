"""The shipped networks are what their manifest says, are small, import, and are as robust as promised."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from certify.bounding.interval import ibp
from certify.frontends.data import load_data
from certify.frontends.onnx_import import load_model
from certify.models import make_digits
from certify.models.manifest import FOLDER, read_manifest
from certify.property import misclassification

ROWS = {row.file: row for row in read_manifest()}
DIGITS = sorted(entry.file for entry in make_digits.ENTRIES)


def test_the_manifest_lists_every_file_and_all_are_small() -> None:
    files = sorted(FOLDER.glob("*.onnx"))
    assert sorted(ROWS) == [path.name for path in files]
    assert set(DIGITS) <= set(ROWS)
    assert sum(path.stat().st_size for path in files) < 10_000_000


@pytest.mark.parametrize("name", sorted(ROWS))
def test_a_shipped_file_is_the_one_of_the_manifest(name: str) -> None:
    row = ROWS[name]
    assert row.intact(FOLDER)
    if row.attacked is not None and row.certified is not None:
        assert 0 <= row.certified <= row.attacked <= 1
        assert row.samples
        assert row.measured_eps


@pytest.mark.parametrize("name", sorted(ROWS))
def test_a_shipped_file_needs_no_further_option(name: str) -> None:
    model = load_model(FOLDER / name)
    assert model.metadata["certify.data"] == ROWS[name].data
    assert model.metadata["certify.input_range"] == "0,1"
    assert model.graph.input_shape == {"digits": (1, 8, 8), "mnist": (1, 28, 28)}[ROWS[name].data]
    assert model.onnx_shape[0] == -1, "the batch axis is dynamic"


@pytest.mark.parametrize("name", DIGITS)
def test_the_clean_accuracy_is_the_stated_one(name: str) -> None:
    data = load_data("digits", split="test")
    session = onnxruntime.InferenceSession(FOLDER / name, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"input": data.x.reshape(-1, 1, 8, 8)})
    assert float(np.mean(logits.argmax(1) == data.y)) == pytest.approx(ROWS[name].clean, abs=1e-4)
    assert ROWS[name].clean >= 0.9


def test_the_robust_network_is_certified_by_intervals_alone_and_the_plain_one_is_not() -> None:
    data = load_data("digits", split="test")
    x = data.x.reshape(-1, 1, 8, 8).astype(np.float64)
    rates = {}
    for name in ("digits_cnn_robust.onnx", "digits_cnn.onnx"):
        graph = load_model(FOLDER / name).graph.cast(x)
        eps = 4 / 255
        lower, upper = ibp(graph, np.clip(x - eps, 0, 1), np.clip(x + eps, 0, 1))[-1]
        safe = []
        for i, label in enumerate(data.y):
            rows = np.concatenate([p.coeff for p in misclassification(int(label), 10)])
            margins = np.where(rows > 0, rows, 0) @ lower[i] + np.where(rows < 0, rows, 0) @ upper[i]
            safe.append(bool((margins > 0).all()))
        rates[name] = float(np.mean(safe))
    assert rates["digits_cnn_robust.onnx"] > 0.9
    assert rates["digits_cnn.onnx"] < 0.5


def test_the_command_says_what_is_wrong_with_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.write_text("")
    assert make_digits.main(["--out", str(file)]) == 2
    assert "error:" in capsys.readouterr().err


@pytest.mark.long
def test_the_command_makes_all_files_anew(tmp_path: Path) -> None:
    assert make_digits.main(["--out", str(tmp_path)]) == 0
    again = {row.file: row for row in read_manifest(tmp_path)}
    assert sorted(again) == DIGITS
    for name, row in again.items():
        assert row.clean == pytest.approx(ROWS[name].clean, abs=0.03)
