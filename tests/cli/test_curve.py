"""`certify curve`: what it shows and writes, how it goes on, and what it refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result

from certify.cli.main import cli


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["curve", *map(str, arguments)])


def given(folder: Path, *more: object) -> tuple[object, ...]:
    return (folder / "net.onnx", "--data", folder / "data.npz", "--device", "cpu", *more)


def test_files_hold_what_is_shown(linear: Path, exact: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "runs" / "curve"
    found = call(*given(linear), "--eps", "0:0.4:0.1", "--out", out)
    assert found.exit_code == 0, found.output
    with (out / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [r["eps"] for r in rows] == ["0", "0.1", "0.2", "0.3", "0.4"]
    shares = [(float(r["certified"]), float(r["attacked"]), float(r["clean"])) for r in rows]
    assert all(c <= a <= clean for c, a, clean in shares)
    assert shares == sorted(shares, reverse=True)
    for row in rows:
        assert f"{float(row['certified']):.2%}" in found.output
    ElementTree.fromstring((out / "curve.svg").read_text())
    manifest = json.loads((out / "manifest.json").read_text())
    assert [b["eps"] for b in manifest["brackets"]] == [r["eps"] for r in rows]
    assert sum(1 for _ in (out / "results.csv").open()) == 1 + 24 * 5
    again = call(*given(linear), "--eps", "0:0.4:0.1", "--out", out)
    assert again.exit_code == 2
    assert "exists already" in again.output
    resumed = call(*given(linear), "--eps", "0:0.4:0.1", "--out", out, "--resume", "--quiet")
    assert resumed.exit_code == 0, resumed.output
    assert resumed.output.splitlines()[1] == "0.1 {2:.4f} {1:.4f} {0:.4f}".format(*shares[1])


def test_json_is_one_document(linear: Path, exact: ModuleType, tmp_path: Path) -> None:
    found = call(*given(linear), "--eps", "0:0.2:0.1", "--out", tmp_path / "new", "--json")
    assert found.exit_code == 0, found.output
    assert len(json.loads(found.output)["brackets"]) == 3


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--eps", "0:1"), "not a range"),
        (("--eps", "0.3:0:0.1"), "runs backwards"),
        (("--resume",), "--resume needs --out"),
        (("--timeout", "-1"), "--timeout"),
        (("--ids", "99"), "99"),
    ],
)
def test_what_cannot_be_used_is_said_and_nothing_is_written(
    linear: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...], message: str
) -> None:
    empty = linear / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    found = call(*given(linear), *more)
    assert found.exit_code == 2
    assert message in found.output
    assert list(empty.iterdir()) == []
