"""Code in the documentation that is marked <!-- run --> runs as it stands, block after block of a page, in a folder
where the shipped models lie under models/.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from certify.cli.main import cli

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^<!-- run -->\n```(python|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RUN = [page for page in PAGES if BLOCK.search(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_the_examples_of_a_page_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models").symlink_to(ROOT / "models")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for language, code in BLOCK.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            exec(compile(code, str(page), "exec"), names)
        else:
            for line in code.splitlines():
                command, *arguments = shlex.split(line, comments=True)
                assert command == "certify", f"{page}: only lines of certify are run: {line}"
                found = CliRunner().invoke(cli, arguments)
                assert found.exit_code == 0, f"{line}\n{found.output}"


def test_pages_are_found() -> None:
    assert {"tutorial", "bounds", "research"} <= {page.stem for page in RUN}


def test_marks_are_spelled_as_the_test_reads_them() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert text.count("<!-- run -->") == len(BLOCK.findall(text)), page
