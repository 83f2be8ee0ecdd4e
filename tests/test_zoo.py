"""The zoo's recipes are comparable, a network is made once, and what is measured of it is written down."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner

from certify import zoo
from certify.cli.main import cli
from certify.models import manifest
from certify.trainers.recipe import read_recipe


def test_the_zoo_compares_methods_on_one_architecture_trained_in_minutes() -> None:
    recipes = zoo.recipes()
    assert len({_layers(manifest.FOLDER / f"{name}.onnx") for name in recipes}) == 1
    for recipe in recipes.values():  # an epoch of an attack of five steps costs as much as two or three of bounds
        assert recipe.schedule.epochs <= (32 if recipe.objective.get("steps") == 5 else 50)
    for radius in ("0.1", "0.3"):
        methods = {recipe.method for recipe in recipes.values() if recipe.eps == radius}
        assert {"pgd", "trades", "mmc", "ibp"} < methods
        assert methods & {"sabr", "mtl-ibp"}
    for recipe in recipes.values():
        recipe.make((0.0, 1.0))


def _layers(path: Path) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Operations up to the last ReLU (what is behind is one affine map) and the shapes of their weights."""
    graph = onnx.load(path).graph
    shapes = {i.name: tuple(i.dims) for i in graph.initializer}
    nodes = [(n.op_type, sum((shapes.get(i, ()) for i in n.input), ())) for n in graph.node]
    last = max(at for at, (op, _) in enumerate(nodes) if op == "Relu")
    return tuple(nodes[: last + 1])


def test_a_network_is_made_once_and_measured_as_certify_run_does(tmp_path: Path) -> None:
    text = 'method = "ibp"\ndata = "digits"\neps = "1/255"\nwidth = 0.25\n'
    text += "[schedule]\nepochs = 2\n[objective]\nramp = [0, 1]"
    recipe = read_recipe(text, "x")
    making = zoo.Making(tmp_path, tmp_path / "work", samples=5, timeout=20.0)
    row = zoo.make("tiny", recipe, making)
    manifest.write_rows([row], tmp_path)
    assert row.intact(tmp_path)
    before = (tmp_path / "tiny.onnx").stat().st_mtime_ns
    assert zoo.make("tiny", recipe, making) == row
    assert (tmp_path / "tiny.onnx").stat().st_mtime_ns == before
    found = zoo.measured(row, making)
    assert found.attacked is not None
    assert found.certified is not None
    assert 0 <= found.certified <= found.attacked <= 1
    assert (found.measured_eps, found.samples) == ("1/255", 5)
    assert zoo.measured(found, making) is found
    assert "tiny.onnx" in zoo.markdown([found])


def test_an_unknown_network_lists_the_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert zoo.main(["mnist_magic"]) == 2
    assert "mnist_ibp_0.3" in capsys.readouterr().err


def test_certify_models_lists_and_tells_what_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    for options in ([], ["--json"], ["--markdown"]):
        done = CliRunner().invoke(cli, ["models", *options])
        assert done.exit_code == 0, done.output
        assert "digits_mlp" in done.output
    rows = manifest.read_manifest()
    monkeypatch.setattr(manifest, "read_manifest", lambda: (replace(rows[0], sha256="0"), *rows[1:]))
    done = CliRunner().invoke(cli, ["models"])
    assert done.exit_code == 2
    assert rows[0].file in done.output
