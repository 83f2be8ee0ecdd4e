"""The report: its numbers are the run's, its charts hand-worked, its pictures exact, and no text becomes markup."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from run_folders import write_run

from certify.gate_baseline import Change
from certify.options import parse_eps
from certify.report.accounting import Bracket
from certify.report.assurance import Assurance
from certify.report.folder import Shown, read_folder
from certify.report.html import embedded, headline, policy, render, replay_command
from certify.report.html_charts import cactus_chart, eps_chart, linear, logarithmic
from certify.report.html_data import by_class, by_stage, cactus, comparison, confusion, kind, spent, views
from certify.report.html_pictures import LARGEST, changes, pictures

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{7*7}}\u2028"


class Parsed(HTMLParser):
    """Elements and the text of the script elements of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script" and self.cdata_elem == "script":
            self.scripts[-1] += data
        else:
            self.words.append(data)

    def data(self) -> dict[str, object]:
        return json.loads(self.scripts[0])


def test_the_documents_columns_are_the_runs_results(tmp_path: Path) -> None:
    folder = read_folder(write_run(tmp_path / "run", left=7))
    data = Parsed(render([folder])).data()
    (run,) = data["runs"]
    assert run["samples"]["id"] == [s.id for s in folder.samples]
    assert [view["eps"] for view in run["views"]] == ["1/10", "1/5"]
    for view, (_, bracket) in zip(run["views"], folder.report.brackets.items(), strict=True):
        found = [data["kinds"][k] for k in view["columns"]["kind"]]
        for name in ("certified", "falsified", "misclassified", "unknown", "pending"):
            assert found.count(name) == getattr(bracket, name)
        assert view["bracket"]["counts"]["falsified"] == bracket.falsified
        for position, sample in enumerate(folder.samples):
            result = next((r for r in folder.report.results if (r.id, r.eps) == (sample.id, _radius(view))), None)
            stage = view["columns"]["stage"][position]
            assert (None if stage is None else view["stages"][stage]) == (result and result.outcome.stage)
            target = view["columns"]["target"][position]
            assert target == ((sample.label + 1) % 5 if found[position] in ("falsified", "misclassified") else None)


def _radius(view: dict[str, str]) -> object:
    return parse_eps(view["eps"])[0]


def test_tables_by_stage_class_target_and_time(tmp_path: Path) -> None:
    view = views(read_folder(write_run(tmp_path / "run", n=20, left=5)), "run")[0]
    assert by_stage(view) == [
        ("clean", {"misclassified": 2}),
        ("attack", {"falsified": 2}),
        ("CROWN", {"certified": 9}),
        ("alpha-CROWN", {"unknown": 2}),
    ]
    assert by_class(view)[0] == (0, {"misclassified": 2, "certified": 1, "pending": 1})
    assert sum(sum(counts.values()) for _, counts in by_class(view)) == 20
    assert confusion(view, "falsified") == {(1, 2): 2}
    assert confusion(view, "misclassified") == {(0, 1): 2}
    assert [(stage, count) for stage, _, count in spent(view)] == [("clean", 2), ("attack", 13), ("CROWN", 11)]
    assert cactus(view, "falsified") == [(1, 0.02), (2, pytest.approx(0.12))]
    assert [r.id for r in view.unresolved] == [104, 114], "the one that lacks less comes first"
    assert view.retry_one() == ("certify run nets/net.onnx --data some.npz --timeout 20 --eps 1/10 --ids ", "")
    assert view.retry([104, 105]) == "certify run nets/net.onnx --data some.npz --timeout 20 --eps 1/10 --ids 104-105"
    assert all(kind(r) != "error" for r in view.results)


def test_a_run_from_python_is_tried_again_from_python(tmp_path: Path) -> None:
    view = views(read_folder(write_run(tmp_path / "run")), "run")[0]
    view.folder.told["command"].clear()
    report = replace(view.folder.report, command={}, data="arrays", model="Net")
    view = replace(view, folder=replace(view.folder, report=report))
    call = "certify.run(model, (x[ids], y[ids]), eps='1/10', timeout=20.0, arithmetic='real')"
    assert view.retry([104]) == f"{call} with ids = [104]"
    assert view.retry_one() == (view.retry([104]).removesuffix("104]"), "]")


def test_a_tie_is_a_witness_of_the_other_class(tmp_path: Path) -> None:
    root = write_run(tmp_path / "run", eps="1/10")
    with np.load(root / "witnesses" / "101-1_10.npz") as stored:
        arrays = dict(stored)
    np.savez(root / "witnesses" / "101-1_10.npz", **{**arrays, "y": np.ones(5)})
    assert views(read_folder(root), "run")[0].shown[101].target != 1


def test_two_runs_are_compared_sample_by_sample(tmp_path: Path) -> None:
    old = views(read_folder(write_run(tmp_path / "old", eps="1/10,1/5", n=20)), "old")[1]
    new = views(read_folder(write_run(tmp_path / "new", eps="1/5", n=30)), "new")[0]
    found = comparison(old, new)
    assert found.common == 20
    assert found.changes == {Change.FIXED: (102, 112)}
    assert found.table["falsified", "certified"] == (102, 112)
    assert not found.warnings
    assert comparison(new, old).changes == {Change.REGRESSED: (102, 112)}


def test_no_text_of_a_run_becomes_markup(tmp_path: Path) -> None:
    root = write_run(tmp_path / "run", model=f"nets/{EVIL}.onnx", reason=EVIL)
    plain = Parsed(render([read_folder(write_run(tmp_path / "plain"))], live="/state/plain"))
    page = Parsed(render([read_folder(root)], live=f"/state/{EVIL}"))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
    assert all(not name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.data()["runs"][0]["about"]["model"]["source"] == f"nets/{EVIL}.onnx"
    assert any(EVIL in text for text in page.words), "it is shown as text"
    assert "49" not in "".join(w for w in page.words if "alert(1)" in w), "it is no template"


def test_a_page_needs_nothing_from_elsewhere_and_runs_its_own_script_only(tmp_path: Path) -> None:
    page = Parsed(render([read_folder(write_run(tmp_path / "run"))]))
    for tag, attributes in page.tags:
        assert tag not in ("iframe", "object", "embed", "base", "form") or "action" not in attributes
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith("data:"), (tag, attributes)
    (meta,) = [a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert meta == policy(live=False)
    digest = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in meta
    assert "http://" not in page.scripts[1]
    assert "innerHTML" not in page.scripts[1]


def test_embedded_json_holds_no_markup() -> None:
    text = embedded({"a": EVIL, "b": [None, 0.1]})
    assert not set("<>&") & set(text)
    assert text.isascii()
    assert json.loads(text) == {"a": EVIL, "b": [None, 0.1]}
    with pytest.raises(ValueError, match="Out of range"):
        embedded([float("nan")])


def test_the_headline_says_what_is_known() -> None:
    (eps,) = parse_eps("0.1")
    calm, checked = {"alarms": False, "running": False}, Assurance(checked=3)
    assert headline(Bracket(eps, 4, certified=3, falsified=1), checked, **calm) == ("exact", "Exactly 75.00% robust")
    open_ = Bracket(eps, 4, certified=2, unknown=2)
    assert headline(open_, checked, **calm) == ("open", "Between 50.00% and 100.00% robust")
    assert headline(Bracket(eps, 4, pending=4), checked, alarms=False, running=True)[0] == "running"
    assert headline(Bracket(eps, 4, certified=1, pending=3), checked, **calm)[0] == "stopped"
    assert headline(Bracket(eps, 4, certified=4), checked, alarms=True, running=False)[0] == "alarm"
    assert headline(Bracket(eps, 0), checked, **calm) == ("exact", "Nothing decided")
    for weak in (Assurance(checked=1, unchecked=2), Assurance(solver=2)):
        found = headline(Bracket(eps, 4, certified=4), weak, **calm)
        assert found == ("open", "Exactly 100.00% robust (unchecked proofs: 2)")


def test_axes_have_round_ticks_that_hold_their_values() -> None:
    assert [text for _, text in linear("", 9562).ticks] == ["0", "2,000", "4,000", "6,000", "8,000"]
    assert [text for _, text in linear("", 0.033).ticks] == ["0", "0.01", "0.02", "0.03"]
    axis = logarithmic("", 0.004, 17)
    assert (axis.low, axis.high) == (0.001, 100)
    assert axis.at(0.001) == 0
    assert axis.at(100) == 1
    assert axis.at(0.1) == pytest.approx(0.4)
    for high in (1e-9, 0.3, 1.0, 7, 1e7):
        assert 2 <= len(linear("", high).ticks) <= 6


def test_the_bracket_against_eps_steps_where_the_radii_are() -> None:
    """A proof at 0.2 holds below it, a witness at 0.1 above it: between them the bracket is [certified(0.2), ...]."""
    small, large = parse_eps("0.1,0.2")
    brackets = [Bracket(small, 10, certified=8, falsified=1, unknown=1), Bracket(large, 10, certified=4, falsified=6)]
    lines = re.findall(r'class="line (\w+)[^"]*" points="([^"]*)"', str(eps_chart(brackets, "linf")))
    heights = {name: [round(float(p.split(",")[1])) for p in points.split()] for name, points in lines}
    at = {share: round(270 - 40 - (270 - 26 - 40) * share) for share in (0, 0.4, 0.8, 0.9, 1)}
    assert heights["certified"] == [at[0.8], at[0.8], at[0.4], at[0.4], at[0], at[0]]
    assert heights["falsified"] == [at[1], at[1], at[0.9], at[0.9], at[0.4], at[0.4]]
    assert cactus_chart([("a", "certified", [])]) == ""


def image(address: str) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.split(",")[1]))))


@pytest.mark.parametrize("shape", [(1, 8, 6), (8, 6, 1), (8, 6), (64,), (3, 8, 8), (8, 8, 3), (192,)])
def test_pictures_show_the_values(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    clean = rng.integers(64, 128, shape) / 256  # sums without rounding
    x = clean.copy()
    x.flat[0], x.flat[1] = clean.flat[0] + 0.5, clean.flat[1] - 0.25
    found = pictures(Shown(x, np.zeros(3), clean), (0.0, 1.0))
    assert found is not None
    assert found.clean is not None
    assert found.difference is not None
    drawn = image(found.clean)
    colours = 3 in shape or shape == (192,)
    planes = clean.reshape(3, 8, 8) if shape == (192,) else clean
    expected = np.moveaxis(planes, 0, -1) if colours and shape != (8, 8, 3) else planes
    assert np.array_equal(drawn.ravel(), np.rint(255 * expected).astype(np.uint8).ravel())
    assert found.amplified == 2
    assert found.colours == colours
    if not colours:
        change = image(found.difference).reshape(-1, 4)
        assert tuple(change[0]) == (213, 94, 0, 255), "the largest change in full, more is orange"
        assert tuple(change[1]) == (0, 114, 178, 128), "half of it, less is blue"
        assert not change[2:, 3].any(), "nothing where nothing has changed"


def test_a_large_picture_is_averaged_and_no_picture_is_a_list_of_changes() -> None:
    found = pictures(Shown(np.full((3, 300, 200), 0.5), np.zeros(3), None), (0.0, 1.0))
    assert found is not None
    assert found.reduced
    assert max(image(found.witness).shape) <= LARGEST
    clean = np.zeros(5)
    shown = Shown(np.array([0, 0.5, 0, -1, 0]), np.zeros(2), clean)
    assert pictures(shown, (0.0, 1.0)) is None
    assert [(c.coordinate, c.witness) for c in changes(shown)] == [(3, -1), (1, 0.5)]


def test_the_replay_command_runs_and_shows_the_witness(linear: Path) -> None:
    """The command of the page, run as it stands, gives the stored outputs."""
    import shlex
    import subprocess
    import sys

    from certify.api import run

    model, data = linear / "net.onnx", np.load(linear / "data.npz")
    run(model, (data["x"], data["y"]), "0.2", method="attack", out=linear / "it's a run")
    folder = read_folder(linear / "it's a run")
    result = next(r for r in folder.report.results if kind(r) == "falsified")
    with np.load(folder.root / str(result.witness_file)) as witness:
        outputs, label = witness["y"], int(witness["label"])
    words = shlex.split(replay_command(folder, result))
    done = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True, check=True)
    shown = [float(v) for v in re.findall(r"-?\d+\.?\d*(?:e-?\d+)?", done.stdout)]
    assert shown[0] == label
    np.testing.assert_allclose(shown[1:], outputs, rtol=1e-4, atol=1e-6)


def test_an_unreadable_witness_is_said_and_does_not_stop_the_report(tmp_path: Path) -> None:
    root = write_run(tmp_path / "run", eps="1/10")
    (root / "witnesses" / "101-1_10.npz").write_bytes(b"damaged")
    view = views(read_folder(root), "run")[0]
    assert view.damaged == 1
    assert "1 witness files cannot be read" in render([read_folder(root)])


def test_the_gallery_is_capped_and_says_so(tmp_path: Path) -> None:
    page = render([read_folder(write_run(tmp_path / "run", n=700, eps="1/10"))])
    assert page.count('class="card witness"') == 60
    assert "60 of 70 falsified" in page
