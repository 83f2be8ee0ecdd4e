"""action.yml, step by step as GitHub runs it, and the pre-commit hook as pre-commit runs it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from onnx import numpy_helper

ROOT = Path(__file__).resolve().parents[1]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
HOOKS = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())


@dataclass(frozen=True)
class Job:
    """What a job with this one step came to. used: the steps of other actions, with their inputs."""

    code: int
    log: str
    summary: str
    outputs: Mapping[str, str]
    used: Mapping[str, Mapping[str, str]]


def run_action(workspace: Path, source: Path, **given: str) -> Job:
    """The steps of the action in `source`, in order, in a shell and an environment as on a runner.

    Expressions are those of this action: inputs.X, github.action_path, == and != with a string, &&, always().
    """
    inputs = {name: str(i.get("default", "")) for name, i in ACTION["inputs"].items()}
    assert given.keys() <= {name.replace("-", "_") for name in inputs}, given
    inputs |= {name.replace("_", "-"): value for name, value in given.items()}
    contexts = {f"inputs.{name}": value for name, value in inputs.items()} | {"github.action_path": str(source)}

    def fill(text: str) -> str:
        return re.sub(r"\$\{\{\s*([\w.-]+)\s*\}\}", lambda found: contexts[found[1]], text)

    def holds(expression: str) -> bool:
        def part(text: str) -> bool:
            if text == "always()":
                return True
            found = re.fullmatch(r"([\w.-]+) (==|!=) '(.*)'", text)
            assert found, text
            return (contexts[found[1]] == found[3]) == (found[2] == "==")

        return all(part(p) for p in expression.split(" && "))

    temp = workspace.parent / "runner"
    shutil.rmtree(temp, ignore_errors=True)
    temp.mkdir()
    files = {
        name: temp / name.lower() for name in ("GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT", "GITHUB_PATH", "GITHUB_ENV")
    }
    for file in files.values():
        file.touch()
    code, log, used = 0, "", {}
    for step in ACTION["runs"]["steps"]:
        condition = step.get("if", "")
        if (code and "always()" not in condition) or (condition and not holds(condition)):
            continue
        if "uses" in step:
            used[step["uses"]] = {name: fill(value) for name, value in step["with"].items()}
            continue
        assert step["shell"] == "bash"
        script = temp / "script.sh"
        script.write_text(fill(step["run"]))
        added = files["GITHUB_PATH"].read_text().split()
        environment = {
            "PATH": os.pathsep.join([*reversed(added), str(Path(sys.executable).parent), "/usr/bin", "/bin"]),
            "HOME": str(temp),
            "CI": "true",
            "OMP_NUM_THREADS": "1",
            "RUNNER_TEMP": str(temp),
            **{name: str(file) for name, file in files.items()},
            **{name: value for name, value in os.environ.items() if name.startswith("PIP_")},
            **{name: fill(value) for name, value in step.get("env", {}).items()},
        }
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", str(script)],
            cwd=workspace / fill(step.get("working-directory", ".")),
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        code, log = code or done.returncode, log + done.stdout + done.stderr
    outputs = dict(line.split("=", 1) for line in files["GITHUB_OUTPUT"].read_text().splitlines())
    return Job(code, log, files["GITHUB_STEP_SUMMARY"].read_text(), outputs, used)


def worsened(source: Path, to: Path) -> None:
    """The last layer's bias prefers one class: the network a careless change could ship."""
    model = onnx.load(source)
    bias = next(t for t in reversed(model.graph.initializer) if list(t.dims) in ([3], [10]))
    value = numpy_helper.to_array(bias).copy()
    value[0] += np.float32(10 if value.size == 10 else 0.2)
    bias.CopyFrom(numpy_helper.from_array(value, bias.name))
    onnx.save(model, to)


@pytest.fixture
def workspace(linear: Path) -> Path:
    folder = linear / "a workspace"
    folder.mkdir()
    for name in ("net.onnx", "data.npz"):
        shutil.copy(linear / name, folder / name)
    return folder


def test_a_gate_of_inputs_met_and_then_lost_to_a_worsened_model(workspace: Path) -> None:
    asked = {"install": "false", "model": "net.onnx", "data": "data.npz", "eps": "0.05", "min_certified": "0.3"}
    met = run_action(workspace, ROOT, **asked, args="--timeout 30 --device 'cpu'", out="first run")
    assert met.code == 0, met.log
    assert met.outputs["outcome"] == "met"
    out = Path(met.outputs["results"])
    assert sorted(p.name for p in out.iterdir() if p.suffix in (".xml", ".sarif", ".md")) == [
        "certify.sarif",
        "junit.xml",
        "summary.md",
    ]
    assert met.summary == (out / "summary.md").read_text()
    assert met.used == {"actions/upload-artifact@v4": {"name": "certify-gate", "path": "./first run"}}
    worsened(workspace / "net.onnx", workspace / "net.onnx")
    lost = run_action(workspace, ROOT, **asked, baseline="first run", upload_sarif="true", artifact="")
    assert lost.code == 1, lost.log
    assert lost.outputs["outcome"] == "not met"
    (change,) = json.loads((workspace / "certify-gate/gate.json").read_text())["changes"]
    assert change["regressed"]
    assert re.search(rf"regressed, {len(change['regressed'])} of 24 compared: {change['regressed'][0]}", lost.log)
    assert "gate not met" in lost.summary
    assert lost.used == {"github/codeql-action/upload-sarif@v3": {"sarif_file": "./certify-gate/certify.sarif"}}
    again = run_action(workspace, ROOT, **asked)
    assert again.code == 2
    assert "exists already" in again.log
    assert (again.summary, again.outputs["outcome"]) == ("", ""), "nothing of an earlier call is shown as this one's"


def test_a_gate_of_a_file_in_a_folder_and_inputs_that_hold_commands(workspace: Path) -> None:
    (workspace / "sub").mkdir()
    (workspace / "certify.toml").write_text(
        'model = "net.onnx"\ndata = "data.npz"\neps = 0.05\nmin-certified = "10%"\ndevice = "cpu"\n'
    )
    job = run_action(workspace, ROOT, install="false", working_directory="sub", all_samples="false")
    assert job.code == 0, job.log
    assert f"Defaults of options: {workspace / 'certify.toml'}" in job.log
    bad = run_action(
        workspace, ROOT, install="false", out="o", model="$(touch stolen).onnx", args="--data `touch stolen`.npz"
    )
    assert bad.code == 2
    assert not list(workspace.rglob("stolen*"))
    unbalanced = run_action(workspace, ROOT, install="false", out="o", args="--data 'x")
    assert unbalanced.code != 0
    assert not (workspace / "o").exists()


def test_every_option_of_the_action_is_one_of_the_command() -> None:
    from certify.cli.gate import gate

    names = {max(p.opts, key=len).removeprefix("--") for p in gate.params}
    script = ACTION["runs"]["steps"][1]["run"]
    (listed,) = re.findall(r"for name in (.*); do", script)
    assert set(listed.split()) <= names
    assert set(re.findall(r"--([a-z-]+) \"", script)) <= names
    assert set(listed.split()) <= ACTION["inputs"].keys()
    for step in ACTION["runs"]["steps"]:
        assert "inputs." not in step.get("run", ""), "inputs reach scripts as variables only"


@pytest.mark.long
def test_a_fresh_clone_installs_gates_the_shipped_model_and_fails_a_worse_one(tmp_path: Path) -> None:
    """The action's own steps in a clean clone, its install among them; what it needs is taken from this environment."""
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    python = tmp_path / "python"
    python.write_text(
        # A new environment that sees the packages of this one, so that pip finds torch and the like installed.
        f'#!/bin/sh\n"{sys.executable}" "$@" || exit 1\n'
        f'if [ "$2" = venv ]; then\n  for site in "$3"/lib/python3*/site-packages; do\n'
        f'    "{sys.executable}" -c "import onnx, pathlib; print(pathlib.Path(onnx.__file__).parents[1])" '
        '> "$site/here.pth"\n  done\nfi\n'
    )
    python.chmod(0o755)
    asked = {"python": str(python), "pip_args": "", "eps": "4/255", "min_certified": "0.90"}
    met = run_action(clone, clone, **asked, model="models/digits_cnn_robust.onnx", out="first")
    assert met.code == 0, met.log
    worsened(clone / "models/digits_cnn_robust.onnx", clone / "worse.onnx")
    lost = run_action(clone, clone, **asked, model="worse.onnx", baseline="first", args="--data digits")
    assert lost.code == 1, lost.log
    (change,) = json.loads((clone / "certify-gate/gate.json").read_text())["changes"]
    assert change["regressed"]
    assert f"regressed, {len(change['regressed'])} of 360 compared: {change['regressed'][0]}" in lost.log


def hook(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pre_commit", "run", "--all-files", "--verbose"],
        cwd=folder,
        env=os.environ
        | {
            "PRE_COMMIT_HOME": str(folder.parent / "pre-commit"),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )


def git(folder: Path, *words: str) -> str:
    command = ["git", "-c", "user.name=t", "-c", "user.email=t@t.example", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def test_the_pre_commit_hook_refuses_a_worse_model(workspace: Path) -> None:
    ours = workspace.parent / "hooks"
    ours.mkdir()
    shutil.copy(ROOT / ".pre-commit-hooks.yaml", ours)
    for folder in (ours, workspace):
        git(folder, "init", "--quiet")
    git(ours, "add", "-A")
    git(ours, "commit", "--quiet", "-m", "hooks", "--no-verify")
    (workspace / ".pre-commit-config.yaml").write_text(
        f"repos: [{{repo: {ours}, rev: {git(ours, 'rev-parse', 'HEAD')}, hooks: [{{id: certify-gate-installed}}]}}]\n"
    )
    (workspace / ".gitignore").write_text("runs/\n")
    (workspace / "certify.toml").write_text(
        'model = "net.onnx"\ndata = "data.npz"\neps = 0.05\nmin-certified = 0.3\ndevice = "cpu"\n'
    )
    git(workspace, "add", "-A")
    done = hook(workspace)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "gate: met" in done.stdout
    (workspace / "certify.toml").write_text((workspace / "certify.toml").read_text().replace("0.3", "0.99"))
    git(workspace, "add", "-A")
    done = hook(workspace)
    assert done.returncode == 1
    assert "gate: not met" in done.stdout


def test_hooks_are_alike_but_for_where_certify_comes_from() -> None:
    first, second = HOOKS
    assert {k for k in first if first[k] != second[k]} == {"id", "language", "description"}
    assert re.search(first["files"], "models/net.onnx.gz")
    assert not re.search(first["files"], "models/net.onnx.txt")
