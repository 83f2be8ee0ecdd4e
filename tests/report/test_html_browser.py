"""The report in a real browser: it draws, it can be clicked through, and it says nothing on the console."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from run_folders import write_run

from certify.report.folder import read_folder
from certify.report.html import render
from certify.serve import Server, Site
from certify.store import Row, Store
from certify.verdict import Outcome, Verdict

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
EVIL = "</script><script>window.evil=1</script><img src=x onerror='window.evil=1'>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium without a window; $CERTIFY_BROWSER names another program."""
    path = os.environ.get("CERTIFY_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip("NO BROWSER: the report was not looked at in one; install chromium, or name it in CERTIFY_BROWSER")
    playwright = pytest.importorskip("playwright.sync_api", reason="NO BROWSER: playwright is not installed")
    with playwright.sync_playwright() as tool:
        program = tool.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield program
        program.close()


class Reader:
    """A page of a browser that keeps what went wrong and what was asked of the network."""

    def __init__(self, browser: Any, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.wrong: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda m: self.wrong.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda e: self.wrong.append(str(e)))
        self.page.on("request", lambda r: self.asked.append(r.url))

    def open(self, tmp_path: Path, *runs: Path) -> Any:
        path = tmp_path / "report.html"
        path.write_text(render([read_folder(run) for run in runs]), encoding="utf-8")
        self.page.goto(path.as_uri())
        return self.page

    def close(self) -> None:
        self.context.close()
        assert self.wrong == []
        assert all(url.startswith(("file:", "data:", "blob:", "http://127.0.0.1:")) for url in self.asked)


@pytest.fixture
def reader(browser: Any) -> Iterator[Reader]:
    """A wide and light page; the test fails if the console says anything."""
    found = Reader(browser, viewport={"width": 1280, "height": 900}, color_scheme="light")
    yield found
    found.close()


def tab(page: Any, name: str) -> None:
    page.click(f"#tab-{name}")
    assert page.is_visible(f"#{name}")
    assert page.locator('[role="tabpanel"]:visible').count() == 1


def test_every_part_is_drawn_and_reached_by_mouse_and_keys(reader: Reader, tmp_path: Path) -> None:
    page = reader.open(tmp_path, write_run(tmp_path / "run"))
    assert page.inner_text(".badge:visible").endswith("Between 70.00% and 80.00% robust")
    for name in ("samples", "witnesses", "open", "time", "provenance", "overview"):
        tab(page, name)
    page.focus("#tab-overview")
    page.keyboard.press("ArrowRight")
    assert page.is_visible("#samples")
    assert page.evaluate("document.activeElement.id") == "tab-samples"
    page.keyboard.press("End")
    assert page.is_visible("#provenance")
    page.reload()
    assert page.is_visible("#provenance"), "a reload comes back to the same place"


def test_the_choice_of_eps_changes_all_parts(reader: Reader, tmp_path: Path) -> None:
    page = reader.open(tmp_path, write_run(tmp_path / "run"))
    assert page.inner_text('[data-count="falsified"]') == "4"
    page.check('input[name="eps0"][value="1"]', force=True)
    assert page.inner_text('[data-count="falsified"]') == "8"
    assert page.locator("#overview .view:visible").get_attribute("data-eps") == "1"
    tab(page, "witnesses")
    assert page.locator(".witness:visible").count() == 8


def test_ten_thousand_samples_are_paged_sorted_and_filtered(reader: Reader, tmp_path: Path) -> None:
    root = write_run(tmp_path / "run", n=10_000, eps="1/10", period=250, reason=EVIL)
    page = reader.open(tmp_path, root)
    assert (tmp_path / "report.html").stat().st_size < 10e6
    tab(page, "samples")
    rows = page.locator("#samples tbody tr")
    assert rows.count() == 50
    assert page.inner_text("#samples .pager span") == "1–50 of 10,000"
    page.click("#samples .pager >> text=Last")
    assert page.inner_text("#samples .pager span") == "9,951–10,000 of 10,000"
    assert rows.first.locator("td").first.inner_text() == "10050"
    page.click("#samples thead >> text=time")
    assert page.get_attribute('#samples th:has-text("time")', "aria-sort") == "descending"
    assert rows.first.locator("td").first.inner_text() == "10099", "the slowest one first"
    page.fill("#samples input[type=search]", "102, 104-106")
    assert rows.count() == 4
    page.fill("#samples input[type=search]", "")
    page.select_option("#samples select >> nth=0", label="falsified (40)")
    assert page.inner_text("#samples .pager span") == "1–40 of 40"
    rows.first.locator("button").click()
    assert page.is_visible("dialog#detail")
    assert "falsified" in page.inner_text("#detail-body")
    page.click("text=Show the witness")
    assert page.is_visible(".witness.found")
    tab(page, "open")
    assert page.inner_text("#open .pager span") == "1–40 of 40"
    assert page.locator("#open tbody tr").first.locator("td").first.inner_text() == "104", "what lacks least first"
    assert page.evaluate("window.evil") is None


def test_the_theme_follows_the_system_until_it_is_chosen(browser: Any, tmp_path: Path) -> None:
    root = write_run(tmp_path / "run", eps="1/10")
    colour = "getComputedStyle(document.body).backgroundColor"
    found = {}
    for scheme in ("light", "dark"):
        reader = Reader(browser, color_scheme=scheme)
        page = reader.open(tmp_path, root)
        found[scheme] = page.evaluate(colour)
        chosen = []
        for _ in range(2):
            page.click("#theme")
            chosen.append((page.inner_text("#theme"), page.evaluate(colour)))
        page.reload()
        assert (page.inner_text("#theme"), page.evaluate(colour)) == chosen[1], "the choice is kept"
        assert [text for text, _ in chosen] == ["Theme: light", "Theme: dark"]
        found[scheme, "chosen"] = [c for _, c in chosen]
        reader.close()
    assert found["light"] != found["dark"]
    assert found["light", "chosen"] == found["dark", "chosen"] == [found["light"], found["dark"]]


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(browser: Any, tmp_path: Path, width: int) -> None:
    reader = Reader(browser, viewport={"width": width, "height": 800})
    long = "a_very_long_name_of_a_network_without_any_place_to_break_" * 3
    runs = [write_run(tmp_path / "old", model=f"{long}.onnx"), write_run(tmp_path / long[:100], seed=1)]
    page = reader.open(tmp_path, *runs)
    for name in ("overview", "samples", "witnesses", "open", "time", "compare", "provenance"):
        tab(page, name)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
    assert len(page.screenshot(full_page=True)) > 10_000
    reader.close()


def test_names_from_files_do_nothing(reader: Reader, tmp_path: Path) -> None:
    root = write_run(tmp_path / "run<img src=x onerror=window.evil=1>", model=f"{EVIL}.onnx", reason=EVIL)
    page = reader.open(tmp_path, root, write_run(tmp_path / "other", reason=EVIL))
    for name in ("samples", "witnesses", "open", "time", "compare", "provenance"):
        tab(page, name)
    tab(page, "samples")
    page.locator("#samples tbody button").first.click()
    assert page.evaluate("window.evil") is None
    assert page.locator("img[src=x]").count() == 0
    assert EVIL in page.evaluate("JSON.parse(document.getElementById('certify-data').textContent).runs[0].about.notes")


def test_an_injected_script_would_not_run(browser: Any, tmp_path: Path) -> None:
    """The page's policy is the second wall: what slips into the markup is not run."""
    path = tmp_path / "report.html"
    text = render([read_folder(write_run(tmp_path / "run"))])
    path.write_text(text.replace("<main", "<script>window.evil=1</script><main", 1), encoding="utf-8")
    reader = Reader(browser)
    reader.page.goto(path.as_uri())
    assert reader.page.evaluate("window.evil") is None
    assert any("Content Security Policy" in text for text in reader.wrong)
    reader.context.close()


def test_the_data_can_be_saved(reader: Reader, tmp_path: Path) -> None:
    page = reader.open(tmp_path, write_run(tmp_path / "run"))
    tab(page, "provenance")
    with page.expect_download() as saved:
        page.click("#download")
    document = json.loads(Path(saved.value.path()).read_text(encoding="utf-8"))
    assert document["format"] == "certify-report"
    assert len(document["runs"][0]["views"]) == 2


def test_a_served_page_follows_its_run(reader: Reader, tmp_path: Path) -> None:
    root = write_run(tmp_path / "runs" / "one", eps="1/10", left=10)
    with Server(Site(tmp_path / "runs"), "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = reader.page
        page.goto(server.address)
        store = Store.open(root)
        with store:
            page.click("text=one")
            page.wait_for_selector("text=Running: 30 of 40 decided")
            tab(page, "samples")
            eps = read_folder(root).report.radii[0]
            store.record([Row(k, eps, Outcome(Verdict.VERIFIED, "CROWN", lower=1.0)) for k in range(30, 40)])
        for _ in range(60):  # not wait_for_function, which the page's policy forbids
            if "pending" not in page.inner_text("#samples select >> nth=0"):
                break
            page.wait_for_timeout(500)
        assert "pending" not in page.inner_text("#samples select >> nth=0")
        assert page.is_visible("#samples"), "the page stays where it was"
        page.wait_for_selector("#live", state="hidden")
        server.shutdown()
