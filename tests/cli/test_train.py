"""`certify train`: what it writes, that it goes on bit for bit, that its export is the module, and what it refuses."""

from __future__ import annotations

import csv
import errno
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import CliRunner, Result

from certify import training
from certify.cli.main import cli
from certify.frontends.onnx_import import load_model
from certify.trainers.methods import METHODS
from certify.trainers.recipe import read_recipe

SMALL = ["--data", "digits", "--arch", "cnn-small", "--samples", "96", "--quiet", "--set", "width=0.25"]


def certify_train(*arguments: str, epochs: int = 2) -> Result:
    return CliRunner().invoke(cli, ["train", *SMALL, "--set", f"schedule.epochs={epochs}", *arguments])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    kept: dict[str, Any] = torch.load(folder / training.CHECKPOINT, weights_only=True)
    found: dict[str, torch.Tensor] = kept["trainer"]["module"]
    return found


def test_it_writes_a_model_that_certify_run_reads_without_an_option(tmp_path: Path) -> None:
    out = tmp_path / "a"
    done = CliRunner().invoke(
        cli,
        [
            *("train", "--data", "digits", "--method", "ibp", "--eps", "2/255", "--arch", "cnn3", "--out", str(out)),
            *("--verify", "3", "--set", "schedule.epochs=2", "--set", "width=0.0625"),
            *("--set", "objective.ramp=[0,1]"),
        ],
    )
    assert done.exit_code == 0, done.output
    assert "certify run, first 3 test samples" in done.output
    assert "epoch 2/2" in done.output
    model = load_model(out / training.MODEL)
    assert {k: model.metadata[f"certify.{k}"] for k in ("data", "input_range", "seed", "epsilon")} == {
        "data": "digits",
        "input_range": "0,1",
        "seed": "0",
        "epsilon": "2/255",
    }
    assert model.onnx_shape[0] == -1
    rows = list(csv.DictReader((out / training.LOG).open()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert float(rows[1]["clean"]) >= float(rows[1]["adversarial"]) >= float(rows[1]["certified"])
    summary = json.loads((out / training.SUMMARY).read_text())
    assert summary["recipe"]["method"] == "ibp"
    assert summary["clean_accuracy"] == pytest.approx(float(model.metadata["certify.accuracy"]), abs=1e-4)


# Those whose network is more than the architecture; every method's training is in tests/trainers.
@pytest.mark.parametrize("method", ["standard", "mmc", "center", "adp"])
def test_an_export_equals_the_module(method: str, tmp_path: Path) -> None:
    out = tmp_path / "a"
    done = certify_train("--method", method, "--eps", "2/255", "--out", str(out), epochs=1)
    assert done.exit_code == 0, done.output
    material = training.load_material("digits", None, False, 96)
    recipe = read_recipe(f'method = "{method}"\neps = "2/255"\narch = "cnn-small"\nwidth = 0.25', "x")
    module = training.build_network(recipe, material, 0)
    module.load_state_dict(weights(out))
    x = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    session = onnxruntime.InferenceSession(out / training.MODEL, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"input": x.numpy()})
    with torch.no_grad():
        expected = module.eval()(x).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * (1 + np.abs(expected).max()))


def test_going_on_equals_never_having_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--method", "pgd", "--eps", "2/255", "--set", "objective.steps=2"]
    whole, halted = tmp_path / "whole", tmp_path / "halted"
    assert certify_train(*options, "--out", str(whole), epochs=3).exit_code == 0
    measure, calls = training.measure, []

    def interrupt(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(training, "measure", interrupt)
    stopped = certify_train(*options, "--out", str(halted), epochs=3)
    assert stopped.exit_code == 130
    assert "--resume" in stopped.output
    monkeypatch.setattr(training, "measure", measure)
    assert certify_train(*options, "--out", str(halted), "--resume", epochs=3).exit_code == 0
    first, second = weights(whole), weights(halted)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert (whole / training.MODEL).read_bytes() == (halted / training.MODEL).read_bytes()
    logs = [[row["loss"] for row in csv.DictReader((f / training.LOG).open())] for f in (whole, halted)]
    assert logs[0] == logs[1]


def test_an_interruption_before_the_first_checkpoint_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "measure", interrupt)
    options = ["--method", "standard", "--out", str(tmp_path / "a")]
    stopped = certify_train(*options)
    assert stopped.exit_code == 130
    assert "the same command starts anew" in stopped.output
    monkeypatch.undo()
    assert certify_train(*options).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method", "ibp2", "--eps", "0.1"], "sabr, taps, mtl-ibp"),
        (["--method", "ibp", "--eps", "0.1", "--arch", "cnn9"], "cnn5, cnn7"),
        (["--method", "ibp"], "epsilon must be given"),
        (["--method", "ibp", "--eps", "x"], "valid forms"),
        (["--config", "nowhere.toml"], "mnist-sabr-0.1"),
        ([], "--list"),
        (["--method", "standard", "--set", "schedule"], "KEY=VALUE"),
        (["--method", "standard", "--set", "schedule.speed=1"], "learning_rate"),
        (["--method", "standard", "--data", "nothing"], "neither a known set"),
        (["--method", "standard", "--device", "abacus"], "not known"),
        (["--method", "standard", "--set", "mean=[0.1,0.2]", "--set", "std=[1,1]"], "2 channels"),
        (["--method", "standard", "--resume"], "nothing to go on with"),
        (["--method", "standard", "--samples", "1"], "one sample is too few"),
        (["--method", "pgd", "--eps", "0.1", "--set", "objective.steps=-3"], "steps is -3; give 1 or more"),
        (["--method", "adp", "--set", "objective.members=0"], "members is 0; give 1 or more"),
        (["--method", "macer", "--set", "objective.sigma=-0.1"], "sigma is -0.1; give a number of 0 or more"),
        (["--method", "sabr", "--eps", "0.1", "--set", "objective.small=1.5"], "between 0 and 1"),
        (["--method", "standard", "--set", "schedule.clip=-1"], "clip is -1"),
        (["--method", "standard", "--set", "schedule.ema_decay=2"], "ema_decay is 2"),
        (["--method", "standard", "--set", "schedule.weight_decay=-1"], "weight_decay is -1"),
        (["--method", "ibp", "--eps", "0.1", "--amp"], "method ibp has none"),
        (["--method", "standard", "--set", "schedule.learning_rate=1e30"], "epoch 1, batch"),
    ],
)
def test_bad_input_says_what_there_is(arguments: list[str], words: str, tmp_path: Path) -> None:
    done = certify_train("--out", str(tmp_path / "a"), *arguments)
    assert done.exit_code == 2, done.output
    assert words in done.output


def test_data_of_the_wrong_shape_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "flat.npz", x=np.random.default_rng(0).random((30, 4)), y=np.arange(30) % 3)
    done = certify_train("--method", "standard", "--data", str(tmp_path / "flat.npz"), "--out", str(tmp_path / "a"))
    assert done.exit_code == 2
    assert "takes inputs (C, H, W)" in done.output
    flat = certify_train(
        *("--method", "standard", "--data", str(tmp_path / "flat.npz"), "--out", str(tmp_path / "a"), "--arch", "mlp")
    )
    assert flat.exit_code == 0, flat.output


def test_data_of_one_class_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", x=np.random.default_rng(0).random((30, 1, 8, 8)), y=np.zeros(30, dtype=int))
    done = certify_train("--method", "pgd", "--data", str(tmp_path / "one.npz"), "--out", str(tmp_path / "a"))
    assert done.exit_code == 2
    assert "of class 0; a classifier needs two" in done.output


def test_flat_samples_are_not_cropped(tmp_path: Path) -> None:
    np.savez(tmp_path / "flat.npz", x=np.random.default_rng(0).random((30, 4)), y=np.arange(30) % 3)
    done = certify_train(
        *("--method", "standard", "--data", str(tmp_path / "flat.npz"), "--out", str(tmp_path / "a"), "--arch", "mlp"),
        *("--set", "schedule.augment=zeros4"),
    )
    assert done.exit_code == 2
    assert "for images (C, H, W), samples have shape (4,)" in done.output


def test_a_checkpoint_of_another_training_is_refused_and_nothing_is_overwritten(tmp_path: Path) -> None:
    out = str(tmp_path / "a")
    assert certify_train("--method", "standard", "--out", out).exit_code == 0
    before = (tmp_path / "a" / training.CHECKPOINT).read_bytes()
    again = certify_train("--method", "standard", "--out", out)
    assert again.exit_code == 2
    assert "--resume" in again.output
    other = certify_train("--method", "standard", "--out", out, "--resume", "--arch", "cnn3")
    assert other.exit_code == 2
    assert "arch 'cnn-small', asked for 'cnn3'" in other.output
    (tmp_path / "a" / training.CHECKPOINT).write_bytes(before[:1000])
    broken = certify_train("--method", "standard", "--out", out, "--resume")
    assert broken.exit_code == 2
    assert "cannot be read back" in broken.output


def test_a_full_disk_is_told_and_the_last_checkpoint_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "a"
    write, calls = training.write_atomically, []

    def full(path: Path, content: bytes) -> None:
        calls.append(path.name)
        if len(calls) < 3:
            write(path, content)
            return
        with training.disk(path):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(training, "write_atomically", full)
    done = certify_train("--method", "standard", "--out", str(out))
    assert done.exit_code == 2
    assert "No space left" in done.output
    monkeypatch.setattr(training, "write_atomically", write)
    assert certify_train("--method", "standard", "--out", str(out), "--resume").exit_code == 0


def test_catastrophic_overfitting_stops_and_keeps_the_epoch_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = iter([0.6, 0.7, 0.1, 0.9])
    monkeypatch.setattr(training, "measure", lambda *_: (0.9, next(shares), 0.0))
    out = tmp_path / "a"
    done = certify_train(
        "--method", "fast", "--eps", "2/255", "--out", str(out), "--set", "schedule.drop=0.2", epochs=4
    )
    assert done.exit_code == 0, done.output
    assert "catastrophic overfitting in epoch 3" in done.output
    kept = torch.load(out / training.CHECKPOINT, weights_only=True)
    assert kept["trainer"]["done"] == 2


def test_the_list_names_everything() -> None:
    done = CliRunner().invoke(cli, ["train", "--list"])
    assert done.exit_code == 0
    for name in (*METHODS, "cnn7", "wrn28-10", "mnist-sabr-0.1"):
        assert name in done.output


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard reads: (epoch, value) by name."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = reader.EventAccumulator(str(folder)).Reload()
    return {name: [(e.step, e.value) for e in found.Scalars(name)] for name in found.Tags()["scalars"]}


def test_tensorboard_reads_the_log_each_epoch_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install 'certify[tensorboard]'")
    options = ["--method", "ibp", "--eps", "2/255", "--tensorboard", "--out", str(tmp_path / "a")]
    save, calls = training._save, []

    def interrupt(*arguments: Any) -> None:
        save(*arguments)
        calls.append(1)
        if len(calls) == 2:  # the checkpoint is written, the events are not
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "_save", interrupt)
    assert certify_train(*options, epochs=3).exit_code == 130
    assert [step for step, _ in scalars(tmp_path / "a" / "tensorboard")["loss"]] == [1]
    monkeypatch.setattr(training, "_save", save)
    assert certify_train(*options, "--resume", epochs=3).exit_code == 0
    found = scalars(tmp_path / "a" / "tensorboard")
    rows = list(csv.DictReader((tmp_path / "a" / training.LOG).open()))
    columns = {"loss": "loss", "images_per_second": "images_per_second"}
    columns |= {f"accuracy/{name}": name for name in ("clean", "adversarial", "certified")}
    assert found.keys() == columns.keys()
    for name, column in columns.items():
        assert [step for step, _ in found[name]] == [1, 2, 3]
        assert [value for _, value in found[name]] == pytest.approx([float(row[column]) for row in rows], rel=1e-6)


def test_tensorboard_that_is_missing_is_told_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    done = certify_train("--method", "standard", "--tensorboard", "--out", str(tmp_path / "a"))
    assert done.exit_code == 2
    assert "pip install 'certify[tensorboard]'" in done.output
    assert not (tmp_path / "a").exists()
