"""`certify report` and `certify serve` as commands: what they write, and every bad input with one clear line."""

from __future__ import annotations

import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from run_folders import write_run

from certify.cli.main import cli


def call(*arguments: object) -> Result:
    result = CliRunner().invoke(cli, [str(a) for a in arguments])
    assert "Traceback" not in result.output
    return result


def test_one_file_beside_the_run_or_where_it_is_wanted(tmp_path: Path) -> None:
    old, new = write_run(tmp_path / "old"), write_run(tmp_path / "new")
    result = call("report", old)
    assert result.exit_code == 0
    assert result.stdout.startswith(f"report: {old / 'report.html'} (")
    assert "<title>net.onnx: robustness report</title>" in (old / "report.html").read_text()
    result = call("report", old, new, "--out", tmp_path / "both.html")
    assert result.exit_code == 0
    assert "Side by side" in (tmp_path / "both.html").read_text()
    assert not (new / "report.html").exists()


def test_bad_input_is_one_line_and_writes_nothing(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    for arguments, text in (
        ((tmp_path,), "holds no run"),
        ((run, tmp_path / "nothing"), "holds no run"),
        ((run, "--out", tmp_path), "is a folder"),
        ((run, "--out", tmp_path / "no" / "report.html"), "cannot be written"),
    ):
        result = call("report", *arguments)
        assert result.exit_code == 2, result.output
        assert text in result.stderr
        assert result.stderr.count("\n") == 1
    assert not (run / "report.html").exists()
    assert call("report").exit_code == 2
    assert "no such folder" in call("serve", tmp_path / "nothing").stderr


def test_serve_answers_until_it_is_interrupted(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    command = [sys.executable, "-c", "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"]
    command[2] += "; from certify.cli.main import main; main()"
    process = subprocess.Popen(
        [*command, "serve", str(tmp_path), "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        address = line.split()[1]
        assert address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(address, timeout=60) as answer:
            assert b'href="/run/run"' in answer.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.communicate()


def test_an_open_address_is_said_to_be_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import certify.serve

    monkeypatch.setattr(certify.serve.Server, "serve_forever", lambda self: None)
    assert "no password" in call("serve", tmp_path, "--host", "0.0.0.0", "--port", "0").stderr
    assert "no password" not in call("serve", tmp_path, "--port", "0").stderr
