"""What setup metadata says, what is on disk and what a built wheel holds are the same tree."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = CONFIG["tool"]["setuptools"]
PACKAGES: list[str] = SETUPTOOLS["packages"]
PACKAGE_DIR: dict[str, str] = SETUPTOOLS["package-dir"]
# The rooms outside certify/, each of them certify.<room> through the map and a link.
ROOMS = sorted(folder for package, folder in PACKAGE_DIR.items() if package != "certify")
GENERATED = (".git", ".venv*", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis", "runs")


def source_files() -> list[Path]:
    """Python files of the package on disk, without the links' second view of the rooms."""
    return [
        path
        for folder in ("certify", *ROOMS)
        for path in sorted((ROOT / folder).rglob("*.py"))
        if not any(part.is_symlink() for part in path.parents)
    ]


def package_of(path: Path) -> str:
    parts = path.relative_to(ROOT).parent.parts
    return ".".join(parts if parts[0] == "certify" else ("certify", *parts))


def test_the_packages_list_is_what_is_on_disk() -> None:
    assert len(PACKAGES) == len(set(PACKAGES))
    assert sorted({package_of(path) for path in source_files()}) == sorted(PACKAGES)


def test_every_package_has_an_init_file() -> None:
    for package in PACKAGES:
        assert (ROOT / Path(*package.split(".")) / "__init__.py").is_file(), package


def test_the_map_and_the_links_agree() -> None:
    assert PACKAGE_DIR["certify"] == "certify"
    links = {path.name: os.readlink(path) for path in (ROOT / "certify").iterdir() if path.is_symlink()}
    assert links == {room: f"../{room}" for room in ROOMS}
    assert {f"certify.{room}": room for room in ROOMS} == {p: d for p, d in PACKAGE_DIR.items() if p != "certify"}


def test_no_folder_of_python_code_is_left_out() -> None:
    found = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert found == {"certify", *ROOMS}


def test_the_links_are_links_in_git() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-s", "certify"], cwd=ROOT, capture_output=True, text=True, check=True)
    modes = {line.split("\t")[1]: line.split()[0] for line in listed.stdout.splitlines()}
    for room in ROOMS:
        assert modes.get(f"certify/{room}") == "120000", f"certify/{room} must be in git as a symlink"


def test_lint_bans_the_second_copy_of_every_room() -> None:
    banned = CONFIG["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"]
    assert set(ROOMS) <= set(banned)


def test_every_direct_dependency_has_a_tested_version() -> None:
    project = CONFIG["project"]
    wanted = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert all("+" not in version for version in pins.values()), "local versions such as +cpu exist on one index only"
    known = {name.lower().replace("_", "-") for name in pins}
    for requirement in wanted:
        name = requirement.split(">=")[0].split("[")[0].strip()
        assert ">=" in requirement, f"{requirement}: lower bounds only"
        assert "<" not in requirement, f"{requirement}: lower bounds only"
        assert name.lower().replace("_", "-") in known, f"{name} is missing in constraints.txt"
    assert pins["torch"] == "2.13.0"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """A wheel built from a clean copy of the sources: a stale build/ folder would hide a missing module."""
    work = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, work / "source", symlinks=True, ignore=shutil.ignore_patterns(*GENERATED))
    script = f"from setuptools import build_meta; print(build_meta.build_wheel({str(work)!r}))"
    subprocess.run([sys.executable, "-c", script], cwd=work / "source", capture_output=True, text=True, check=True)
    return zipfile.ZipFile(next(work.glob("*.whl")))


def test_the_wheel_holds_every_module_under_certify(wheel: zipfile.ZipFile) -> None:
    packed = {name for name in wheel.namelist() if name.endswith(".py")}
    assert packed == {"/".join((*package_of(path).split("."), path.name)) for path in source_files()}


def test_the_wheel_holds_models_and_type_marker(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    assert "certify/py.typed" in names
    for path in (ROOT / "models").iterdir():
        if path.suffix == ".onnx" or path.name == "manifest.json":
            assert f"certify/models/{path.name}" in names


def test_the_wheel_has_nothing_generic_at_top_level(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"certify"}
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())
