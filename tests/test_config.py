"""The file of defaults: found from below, read by the options' own types, refused by the name of the key."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from certify.cli.gate import gate
from certify.errors import UsageError

GOOD = 'model = "net.onnx"\neps = 0.1\nmin-certified = 0.6\nworkers = 2\n'


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory two folders below tmp_path; `gate` is called without its body."""
    here = tmp_path / "a" / "b"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    return here


def options(*arguments: str) -> dict[str, object]:
    """What the command would run with."""
    found: dict[str, object] = {}

    def keep(**values: object) -> None:
        found.update(values)

    command = click.Command("gate", params=gate.params, callback=keep)
    done = CliRunner().invoke(command, list(arguments), standalone_mode=False)
    if done.exception:
        raise done.exception
    return found


def test_the_nearest_file_above_holds(given: Path) -> None:
    top = given.parents[1]
    (top / "pyproject.toml").write_text("[tool.certify]\n" + GOOD)
    found = options()
    assert (found["model"], found["eps"], found["min_certified"], found["workers"]) == (
        str(top / "net.onnx"),
        "0.1",
        "0.6",
        "2",
    )
    (given.parent / "pyproject.toml").write_text("[tool.other]\nx = 1\n")
    assert options()["eps"] == "0.1", "a file without our table is passed by"
    (given.parent / "certify.toml").write_text(GOOD.replace("0.1", '"2/255"'))
    assert options()["eps"] == "2/255"
    assert options("--config", str(top / "pyproject.toml"))["eps"] == "0.1"


def test_the_command_line_goes_before_the_file(given: Path) -> None:
    (given / "certify.toml").write_text(GOOD + "strict = true\n")
    found = options("--eps", "0.2", "other.onnx", "--min-certified", "0.7")
    assert (found["model"], found["eps"], found["min_certified"]) == ("other.onnx", "0.2", "0.7")
    assert found["strict"] is True


def test_paths_are_relative_to_the_file_and_names_are_none(given: Path) -> None:
    (given.parent / "certify.toml").write_text(
        GOOD + 'data = "d.npz"\njunit = "out/j.xml"\nbaseline = "/abs/runs"\nmean = [0.5, 0.25, 1]\n'
    )
    found = options()
    assert found["data"] == str(given.parent / "d.npz")
    assert found["junit"] == str(given.parent / "out/j.xml")
    assert found["baseline"] == "/abs/runs"
    assert found["mean"] == "0.5,0.25,1"
    (given.parent / "certify.toml").write_text(GOOD + 'data = "digits"\n')
    assert options()["data"] == "digits"
    (given.parent / "certify.toml").unlink()
    (given / "certify.toml").write_text(GOOD)
    assert options()["model"] == "net.onnx"
    assert options("--config", "certify.toml")["model"] == "net.onnx"


def test_without_a_file_what_is_missing_is_named(given: Path) -> None:
    with pytest.raises(click.MissingParameter, match="model"):
        options()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("min-certifed = 0.6", "min-certifed is no key of certify; did you mean min-certified?"),
        ("min_certified = 0.6", "min_certified is no key of certify; did you mean min-certified?"),
        ("zzz = 1", "zzz is no key of certify; valid are all-samples, "),
        ("resume = true", "resume is no key"),
        ("samples = 1.5", "samples is 1.5, it takes a whole number"),
        ("samples = true", "samples is True, it takes a whole number"),
        ('timeout = "60"', "timeout is '60', it takes a number"),
        ("strict = 1", "strict is 1, it takes true or false"),
        ("eps = {a = 1}", "eps is {'a': 1}, it takes text"),
        ("eps = []", "eps is [], it takes text"),
        ("eps = [true]", "eps is [True], it takes text"),
        ('norm = "l3"', "norm: 'l3' is not one of 'linf', 'l2', 'l1'"),
        ("samples = -1", "samples: -1 is not in the range x>=0"),
        ("eps = ", "is no TOML file"),
        ("[tool.certify]\neps = 1", "tool is no key of certify"),
    ],
)
def test_what_is_wrong_is_named(given: Path, text: str, message: str) -> None:
    (given / "certify.toml").write_text(text)
    with pytest.raises(UsageError) as caught:
        options("net.onnx", "--eps", "0.1")
    assert str(caught.value).startswith(f"{given / 'certify.toml'}: ")
    assert message in str(caught.value)


def test_files_that_cannot_be(given: Path) -> None:
    (given / "pyproject.toml").write_text("[tool]\ncertify = 3\n")
    with pytest.raises(UsageError, match=r"tool\.certify is no table"):
        options()
    (given / "pyproject.toml").write_text("[tool.certify]\n" + GOOD)
    (given / "certify.toml").write_text(GOOD)
    with pytest.raises(UsageError, match=r"both certify\.toml and \[tool\.certify\]"):
        options()
    (given / "certify.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"both certify\.toml|is no TOML"):
        options()
    with pytest.raises(UsageError, match="cannot be written or read"):
        options("--config", "nowhere.toml")
    (given / "x.toml").write_text("")
    assert options("--config", "x.toml", "net.onnx", "--eps", "0.1")["eps"] == "0.1"
