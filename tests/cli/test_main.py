"""The command around the commands: version, help, suggestions, crashes, light start-up."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner

import certify
from certify.cli.main import cli

HEAVY = ("torch", "pandas", "pyarrow", "onnxruntime", "onnx", "sklearn", "statsmodels", "scipy")


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


def test_version_also_as_a_module() -> None:
    assert CliRunner().invoke(cli, ["--version"]).output == f"certify {certify.__version__}\n"
    assert python("-m", "certify", "--version").stdout == f"certify {certify.__version__}\n"


@pytest.mark.parametrize(
    "code",
    [
        "import certify",
        "from certify.cli.main import cli; cli(['--help'], standalone_mode=False)",
        "from certify.cli.main import cli; cli(['run', '--help'], standalone_mode=False)",
        "from certify.cli.main import cli; cli(['vnnlib', '--help'], standalone_mode=False)",
    ],
)
def test_help_and_import_load_nothing_heavy(code: str) -> None:
    script = f"{code}\nimport sys\nprint('loaded', sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = python("-c", script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded []"


@pytest.mark.parametrize("command", [[], ["run"], ["vnnlib"], ["doctor"]])
def test_help_teaches_with_examples_and_exit_codes(command: list[str]) -> None:
    result = CliRunner().invoke(cli, [*command, "--help"])
    assert result.exit_code == 0
    assert "Examples:" in result.output
    assert "Exit codes:" in result.output


@pytest.mark.parametrize(("typed", "meant"), [(["rnu"], "run"), (["run", "m", "--sampels", "3"], "--samples")])
def test_the_nearest_name_is_suggested(typed: list[str], meant: str) -> None:
    result = CliRunner().invoke(cli, typed)
    assert result.exit_code == 2
    assert "Did you mean" in result.output
    assert f"'{meant}'" in result.output


def test_a_crash_is_one_message_with_the_place_of_its_traceback(
    linear: Path, exact: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    import certify.api

    def crash(*arguments: object) -> None:
        raise ZeroDivisionError("somewhere deep")

    monkeypatch.setattr(certify.api, "make_job", crash)
    arguments = ["run", str(linear / "net.onnx"), "--data", str(linear / "data.npz"), "--eps", "0.1"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 3
    assert "internal error: ZeroDivisionError: somewhere deep" in result.stderr
    assert "Traceback" not in result.output
    place = Path(result.stderr.split("traceback is in ")[1].split(" ")[0])
    assert "somewhere deep" in place.read_text()
    place.unlink()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_an_output_that_is_full_is_no_crash() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "certify", "--help"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode != 0
    assert "No space left on device" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [("doctor",), ("run", "--eps", "0.1", "--samples", "2"), ("run", "--eps", "0.1", "--samples", "2", "--json")],
    ids=" ".join,
)
def test_a_reader_that_leaves_ends_the_command_quietly(
    linear: Path, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    """Regression: `certify run ... | head -1` ended with code 1, which says that a gate was not met."""
    name, *options = arguments
    out = ["--out", str(tmp_path / "out")] if name == "run" else []
    model = [str(linear / "net.onnx"), "--data", str(linear / "data.npz")]
    process = subprocess.Popen(
        [sys.executable, "-m", "certify", name, *model, *options, *out], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait() == 128 + signal.SIGPIPE
    assert not out or (linear / "out" / "manifest.json").exists(), "what was asked for is written all the same"


def test_the_public_names_are_there() -> None:
    for name in certify.__all__:
        assert getattr(certify, name) is not None
    assert set(certify.__all__) <= set(dir(certify))
    with pytest.raises(AttributeError, match="no attribute 'ruin'"):
        _ = certify.ruin
