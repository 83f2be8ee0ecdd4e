"""`certify run`: what it prints and writes, its exit codes, and every kind of bad input with a clear message."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from certify.cli.main import cli
from certify.models.manifest import FOLDER
from certify.options import parse_eps
from certify.verdict import Outcome, Verdict

TESTS = Path(__file__).resolve().parents[1]
# The command itself, on the stand-in pipeline of these tests.
COMMAND = (
    f"import sys; sys.path.insert(0, {str(TESTS)!r}); import exact_pipeline; "
    "sys.modules['certify.pipeline'] = exact_pipeline; from certify.cli.main import main; main()"
)


def call(*arguments: object) -> Result:
    result = CliRunner().invoke(cli, [str(a) for a in arguments])
    assert "Traceback" not in result.output
    return result


def run(folder: Path, *arguments: object) -> Result:
    return call("run", folder / "net.onnx", "--data", folder / "data.npz", *arguments)


def test_tables_files_and_exit_code(linear: Path, exact: ModuleType) -> None:
    out = linear / "out"
    result = run(linear, "--eps", "0.01,0.1", "--out", out)
    assert result.exit_code == 0, result.output
    for text in ("attacked ≤", "certified ≥", "Clopper-Pearson", "unchecked", "misclassified", "time:"):
        assert text in result.stdout
    names = sorted(p.name for p in out.iterdir())
    assert names == ["manifest.json", "results.csv", "results.parquet", "results.sqlite", "witnesses"]
    csv, parquet = pd.read_csv(out / "results.csv"), pd.read_parquet(out / "results.parquet")
    assert len(csv) == len(parquet) == 48
    assert (csv["verdict"] == parquet["verdict"]).all()
    assert set(csv[csv["verdict"] == "verified"]["checking"]) == {"unchecked"}
    assert set(csv[csv["verdict"] == "falsified"]["checking"]) == {"replayed"}
    assert set(csv["arithmetic"]) == {"real"}
    for name in csv[csv["verdict"] == "falsified"]["witness"]:
        with np.load(out / name, allow_pickle=False) as witness:
            assert witness["x"].shape == (4,)
            assert int(np.argmax(witness["y"])) != int(witness["label"])
    manifest = json.loads((out / "manifest.json").read_text())
    assert len(manifest["model"]["sha256"]) == len(manifest["data"]["sha256"]) == 64
    assert manifest["options"] | {"seed": 0, "ids": "0-23", "eps": ["0.01", "0.1"]} == manifest["options"]
    assert manifest["assurance"]["unchecked"] == (csv["verdict"] == "verified").sum()
    assert {"numpy", "onnxruntime", "certify"} <= set(manifest["versions"])
    assert manifest["hardware"]["cores"] >= 1
    assert manifest["command"] | {"--eps": "0.01,0.1", "--out": str(out)} == manifest["command"]
    assert "--timeout" not in manifest["command"], "what was left at its default"
    assert manifest["started"]
    assert manifest["memory"]["process"] > 10e6


def test_json_is_one_document_and_nothing_else(linear: Path, exact: ModuleType) -> None:
    result = run(linear, "--eps", "0.01,0.1", "--json", "--out", linear / "out")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert result.stderr == ""
    assert len(document["results"]) == 48
    assert document["options"] == json.loads((linear / "out" / "manifest.json").read_text())["options"]
    for bracket in document["brackets"]:
        bounds = bracket["bounds"]
        assert bracket["samples"] >= bounds["clean"] >= bounds["attacked"] >= bounds["certified"]
        assert sum(bracket["counts"].values()) == bracket["samples"]
        for name in ("clean", "attacked", "certified"):
            low, high = bracket["population"][name]
            assert low <= bracket["rates"][name] <= high


def test_quiet_prints_one_line_per_eps(linear: Path, exact: ModuleType) -> None:
    result = run(linear, "--eps", "0.01,0.1", "--quiet", "--out", linear / "out")
    lines = result.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == ["eps 0.01", "eps 0.1"]
    certified = (pd.read_csv(linear / "out" / "results.csv")["verdict"] == "verified").sum()
    assert result.stderr == f"of what is certified, {certified} unchecked\n", "the stand-in pipeline checks nothing"


def test_a_selection_runs_only_these(linear: Path, exact: ModuleType) -> None:
    for number, (options, ids) in enumerate(
        [
            (("--ids", "3,7-9"), [3, 7, 8, 9]),
            (("--start", "20"), [20, 21, 22, 23]),
            (("--start", "4", "--end", "9", "--samples", "2"), [4, 5]),
        ]
    ):
        result = run(linear, "--eps", "0.01", "--json", "--out", linear / f"out{number}", *options)
        assert [r["id"] for r in json.loads(result.stdout)["results"]] == ids


def test_the_model_itself_may_name_its_data(linear: Path, exact: ModuleType) -> None:
    import onnx

    model = onnx.load(linear / "net.onnx")
    for key, value in (("certify.data", str(linear / "data.npz")), ("certify.input_range", "0,1")):
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    onnx.save(model, linear / "named.onnx")
    result = call("run", linear / "named.onnx", "--eps", "0.01", "--json", "--out", linear / "out")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["samples"] == 24


def test_eps_is_echoed_after_the_normalisation(linear: Path, exact: ModuleType) -> None:
    result = run(linear, "--eps", "0.01", "--mean", "0", "--std", "0.5", "--json", "--out", linear / "out")
    assert result.exit_code == 0, result.output
    assert "eps 0.01 in raw inputs is 0.02 after the normalisation" in " ".join(json.loads(result.stdout)["notes"])


def test_an_alarm_is_loud_and_exits_with_3(linear: Path, exact: ModuleType) -> None:
    exact.hooks.spoil = lambda p, o: [Outcome(Verdict.VERIFIED, "liar", lower=1.0, upper=-1.0), *o[1:]]
    result = run(linear, "--eps", "0.1", "--json", "--out", linear / "out")
    assert result.exit_code == 3
    assert "SOUNDNESS ALARM" in result.stderr
    assert json.loads(result.stdout)["alarms"]
    assert run(linear, "--eps", "0.1", "--out", linear / "out", "--resume").exit_code == 3, "an alarm does not go away"


def test_exit_4_where_nothing_is_decided(linear: Path, exact: ModuleType) -> None:
    exact.hooks.spoil = lambda p, o: [Outcome(Verdict.UNKNOWN, "tired") for _ in o]
    assert run(linear, "--eps", "0.1", "--ids", "0-4", "--out", linear / "out").exit_code == 4


def break_file(folder: Path, name: str, content: bytes) -> Path:
    (folder / name).write_bytes(content)
    return folder / name


def test_every_bad_input_has_a_clear_message_and_leaves_nothing(linear: Path, exact: ModuleType) -> None:
    net, data, out = linear / "net.onnx", linear / "data.npz", linear / "runs" / "out"
    whole = net.read_bytes()
    x, y = (np.load(data)[k] for k in ("x", "y"))
    np.savez(linear / "nan.npz", x=np.where(np.arange(24)[:, None] == 3, np.nan, x), y=y)
    np.savez(linear / "labels.npz", x=x, y=y + 1)
    np.savez(linear / "shape.npz", x=x[:, :3], y=y)
    np.savez(linear / "empty.npz", x=x[:0], y=y[:0])
    np.savez(linear / "range.npz", x=x * 255, y=y)
    text, cut = break_file(linear, "text.onnx", b"hello"), break_file(linear, "cut.onnx", whole[: len(whole) // 2])
    odd = break_file(linear, "odd.onnx", whole.replace(b"Gemm", b"Gurk"))
    cases: list[tuple[tuple[object, ...], int, str]] = [
        (("run", text, "--data", data, "--eps", "0.1"), 2, "not an ONNX file"),
        (("run", cut, "--data", data, "--eps", "0.1"), 2, "truncated"),
        (("run", odd, "--data", data, "--eps", "0.1"), 2, "Gurk"),
        (("run", linear / "no.onnx", "--data", data, "--eps", "0.1"), 2, "no such file"),
        (("run", net, "--data", linear / "nan.npz", "--eps", "0.1"), 2, "sample 3 holds NaN"),
        (("run", net, "--data", linear / "labels.npz", "--eps", "0.1"), 2, "the network has classes 0 to 2"),
        (("run", net, "--data", linear / "shape.npz", "--eps", "0.1"), 2, "shape (3,)"),
        (("run", net, "--data", linear / "empty.npz", "--eps", "0.1"), 2, "empty"),
        (("run", net, "--data", linear / "range.npz", "--eps", "0.1"), 2, "--input-range"),
        (("run", net, "--data", "mnist", "--data-dir", linear, "--eps", "0.1"), 2, "missing"),
        (("run", net, "--data", "cifar11", "--eps", "0.1"), 2, "cifar11"),
        (("run", net, "--eps", "0.1"), 2, "--data is missing"),
        (("run", net, "--data", data, "--eps", "-1/255"), 2, "negative"),
        (("run", net, "--data", data, "--eps", "zwei"), 2, "valid forms: 2/255"),
        (("run", net, "--data", data), 2, "--eps"),
        (("run", net, "--data", data, "--eps", "0.1", "--norm", "l3"), 2, "linf"),
        (("run", net, "--data", data, "--eps", "0.1", "--timeout", "0"), 2, "--timeout"),
        (("run", net, "--data", data, "--eps", "0.1", "--budget", "nan"), 2, "--budget"),
        (("run", net, "--data", data, "--eps", "0.1", "--mean", "0.5"), 2, "--std"),
        (("run", net, "--data", data, "--eps", "0.1", "--mean", "0", "--std", "0"), 2, "above 0"),
        (("run", net, "--data", data, "--eps", "0.1", "--input-range", "1,0"), 2, "--input-range"),
        (("run", net, "--data", data, "--eps", "0.1", "--ids", "3,99"), 2, "99"),
        (("run", net, "--data", data, "--eps", "0.1", "--samples", "0"), 5, "no sample"),
        (("run", net, "--data", data, "--eps", "0.1", "--resume"), 2, "holds no run"),
        (("run", net, "--data", data, "--eps", "0.1", "--device", "tpu"), 2, "tpu"),
        (("run", net, "--data", data, "--epsilon", "0.1"), 2, "--eps"),
        (("rum", net), 2, "run"),
    ]
    for arguments, code, message in cases:
        extra = ("--out", out) if arguments[0] == "run" else ()
        result = call(*arguments, *extra)
        assert result.exit_code == code, (arguments, result.output)
        assert message in result.stderr, (arguments, result.stderr)
        assert result.stdout == "", arguments
        assert not out.parent.exists(), f"{arguments} left something behind"


def test_resume_needs_out_and_the_same_options(linear: Path, exact: ModuleType) -> None:
    out = linear / "out"
    assert "needs --out" in run(linear, "--eps", "0.1", "--resume").stderr
    assert run(linear, "--eps", "0.1", "--out", out).exit_code == 0
    again = run(linear, "--eps", "0.1", "--out", out)
    assert again.exit_code == 2
    assert "exists already; add --resume" in again.stderr
    other = run(linear, "--eps", "0.2", "--out", out, "--resume")
    assert other.exit_code == 2
    assert "eps was ['1/10'] and is ['1/5']" in other.stderr
    exact.hooks.calls.clear()
    assert run(linear, "--eps", "0.1", "--out", out, "--resume").exit_code == 0
    assert exact.hooks.calls == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(linear: Path, exact: ModuleType) -> None:
    closed = linear / "closed"
    closed.mkdir(mode=0o500)
    result = run(linear, "--eps", "0.1", "--out", closed / "run")
    assert result.exit_code == 2
    assert "cannot be written" in result.stderr


def test_an_out_that_cannot_be_written(linear: Path, exact: ModuleType) -> None:
    result = run(linear, "--eps", "0.1", "--out", linear / "net.onnx" / "run")
    assert result.exit_code == 2
    assert "cannot be written" in result.stderr


def test_a_full_disk_keeps_what_was_committed(linear: Path, exact: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    import certify.disk
    import certify.run_folder

    original, count = certify.run_folder.write_atomically, 0

    def full(path: Path, content: bytes) -> None:
        nonlocal count
        count += 1
        if count == 4:
            with certify.disk.disk(path):
                raise OSError(28, "No space left on device")
        original(path, content)

    monkeypatch.setattr(certify.run_folder, "write_atomically", full)
    result = run(linear, "--eps", "0.3", "--out", linear / "out")
    assert result.exit_code == 2
    assert "No space left on device" in result.stderr
    assert not (linear / "out" / "manifest.json").exists()
    resumed = run(linear, "--eps", "0.3", "--out", linear / "out", "--resume", "--json")
    assert resumed.exit_code == 0
    assert len(json.loads(resumed.stdout)["results"]) == 24


def start(folder: Path, *arguments: object, delay: float = 0.1) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", COMMAND, "run", folder / "net.onnx", "--data", folder / "data.npz", *arguments]
    environment = os.environ | {"EXACT_DELAY": str(delay)}
    return subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def results_in(out: Path, stage: str = "exact") -> int:
    if not (out / "results.sqlite").exists():
        return 0
    try:
        with sqlite3.connect(out / "results.sqlite") as db:
            return int(db.execute("SELECT COUNT(*) FROM results WHERE stage = ?", (stage,)).fetchone()[0])
    except sqlite3.OperationalError:
        return 0


def wait_for_results(out: Path, process: subprocess.Popen[str], least: int) -> None:
    end = time.monotonic() + 30
    while results_in(out) < least:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "no results appeared"
        time.sleep(0.02)


def verdicts(out: Path) -> list[tuple[int, str, str]]:
    table = pd.read_csv(out / "results.csv")
    return sorted(zip(table["id"], table["eps"].astype(str), table["verdict"], strict=True))


def test_killed_in_the_middle_and_resumed_gives_the_same_results(linear: Path, exact: ModuleType) -> None:
    whole, out = linear / "whole", linear / "out"
    assert run(linear, "--eps", "0.05,0.2", "--out", whole).exit_code == 0
    for least in (4, 16):
        process = start(linear, "--eps", "0.05,0.2", "--out", out, *(["--resume"] if least > 4 else []))
        wait_for_results(out, process, least)
        process.kill()
        process.communicate()
        assert not (out / "manifest.json").exists()
    before = results_in(out)
    assert 16 <= before < 44
    exact.hooks.calls.clear()
    assert run(linear, "--eps", "0.05,0.2", "--out", out, "--resume").exit_code == 0
    assert sum(exact.hooks.calls) == 44 - before, "nothing is done twice"
    assert verdicts(out) == verdicts(whole)
    assert len(verdicts(out)) == 48
    assert sorted(os.listdir(out / "witnesses")) == sorted(os.listdir(whole / "witnesses"))


def test_ctrl_c_keeps_results_and_says_how_to_go_on(linear: Path, exact: ModuleType) -> None:
    out = linear / "out"
    process = start(linear, "--eps", "0.05", "--out", out)
    wait_for_results(out, process, 4)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert f"--resume --out {out} goes on" in stderr
    assert "Traceback" not in stderr
    kept = results_in(out)
    assert kept >= 4
    exact.hooks.calls.clear()
    assert run(linear, "--eps", "0.05", "--out", out, "--resume").exit_code == 0
    assert sum(exact.hooks.calls) == 22 - kept


def test_ctrl_c_ends_the_workers_too(tmp_path: Path) -> None:
    """The whole way with real processes; a terminal sends the signal to all of them."""
    model, out = TESTS.parent / "models" / "digits_mlp.onnx", tmp_path / "out"
    radii = ",".join(f"{k}/2550" for k in range(1, 1000))
    options = ["--method", "ibp", "--samples", "12", "--workers", "2", "--out"]
    command = [sys.executable, "-m", "certify", "run", model, "--eps", radii, *options, out]
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    end = time.monotonic() + 60
    while not (found := results_in(out, "IBP")) and time.monotonic() < end:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    assert found
    os.killpg(process.pid, signal.SIGINT)
    stdout, stderr = process.communicate(timeout=30)  # ends when the last process has closed its end
    assert process.returncode == 130
    assert stdout == ""
    assert stderr.strip() == (
        f"Interrupted. What was done is kept in {out}; the same command with --resume --out {out} goes on."
    )
    assert results_in(out, "IBP") >= found


def test_the_shipped_model_needs_no_further_option(tmp_path: Path) -> None:
    """The whole way with the real pipeline."""
    model = TESTS.parent / "models" / "digits_cnn.onnx"
    result = call("run", model, "--eps", "1/255", "--samples", "6", "--json", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["samples"] == 6
    assert document["brackets"][0]["bounds"]["certified"] >= 1
    assert [str(r) for r in parse_eps(document["eps"])] == ["1/255"]


def test_samples_that_could_not_run_are_named_even_when_quiet(linear: Path, exact: ModuleType) -> None:
    def fail(*arguments: object) -> list[Outcome]:
        raise RuntimeError("no luck")

    exact.hooks.spoil = fail
    result = run(linear, "--eps", "0.1", "--quiet", "--out", linear / "out")
    assert result.exit_code == 0, "the misclassified samples are decided"
    assert "22 sample(s) could not run; the first is 0: RuntimeError: no luck" in result.stderr


@pytest.mark.parametrize("name", ["results.sqlite", "witnesses/w.bin", "manifest.json"])
def test_weights_called_as_a_file_of_the_run_are_refused_before_it_begins(tmp_path: Path, name: str) -> None:
    net, out = tmp_path / "net.onnx", tmp_path / "out"
    (tmp_path / name).parent.mkdir(exist_ok=True)
    proto = onnx.load(FOLDER / "digits_mlp.onnx")
    onnx.save(proto, net, save_as_external_data=True, location=name, size_threshold=0)
    result = call("run", net, "--data", "digits", "--eps", "1/255", "--samples", 2, "--certificates", "--out", out)
    assert result.exit_code == 2
    assert name in result.output
    assert not out.exists()


def test_weights_in_other_files_are_kept_with_the_certificates_and_merged(tmp_path: Path) -> None:
    net, runs = tmp_path / "net" / "net.onnx", tmp_path / "runs"
    (net.parent / "deep").mkdir(parents=True)
    proto = onnx.load(FOLDER / "digits_mlp.onnx")
    onnx.save(proto, net, save_as_external_data=True, location="deep/weights.bin", size_threshold=0)
    for shard in ("1/2", "2/2"):
        call(
            "run",
            net,
            "--data",
            "digits",
            "--eps",
            "1/255",
            "--samples",
            4,
            "--certificates",
            "--quiet",
            "--shard",
            shard,
            "--out",
            runs,
        )
    call("merge", tmp_path / "whole", *sorted(runs.iterdir()))
    net.unlink()
    (net.parent / "deep" / "weights.bin").unlink()
    for folder in (*runs.iterdir(), tmp_path / "whole"):
        result = call("check", folder)
        assert result.exit_code == 0, result.output
