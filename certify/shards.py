"""Parts of a run that know of each other: disjoint, together all of the samples, each in a folder and database of its
own, so that machines without a common network can share a run; certify.merge puts them together.

Shard i of n has the samples at the positions i - 1, i - 1 + n, ...: data sets are often sorted by class.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from certify.errors import NoSamples, UsageError
from certify.run_folder import DATABASE
from certify.store import differences

if TYPE_CHECKING:
    from certify.frontends.data import Dataset

NAME = "shard"  # of its part of a fingerprint
WAIT = 10.0  # seconds that a reader waits for a writer's commit


@dataclass(frozen=True)
class Shard:
    """Part `index` of `count`, counted from 1."""

    index: int
    count: int

    @staticmethod
    def parse(text: str) -> Shard:
        """Of "2/4". Raises UsageError."""
        found = re.fullmatch(r"\s*(\d{1,6})\s*/\s*(\d{1,6})\s*", text)
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise UsageError(f"--shard {text!r}: give I/N with I from 1 to N, such as 1/4, 2/4, 3/4 and 4/4")
        return Shard(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def part(self, whole: Dataset) -> Dataset:
        """Its samples. Raises NoSamples."""
        if self.index > len(whole):
            raise NoSamples(f"--shard {self}: of {len(whole)} samples none is left for shard {self.index}")
        own = slice(self.index - 1, None, self.count)
        return replace(whole, x=whole.x[own], y=whole.y[own], ids=whole.ids[own])

    def folder(self, out: Path) -> Path:
        """`out` itself if it is named so, or its own folder in there, so that all shards may be given the same one."""
        name = f"shard-{self.index}-of-{self.count}"
        return out if out.name == name else out / name


def check_siblings(folder: Path, fingerprint: Mapping[str, Any]) -> None:
    """Raises UsageError where another shard beside `folder` is of something else: better now than when all have run."""
    if (folder.parent / DATABASE).exists():
        raise UsageError(f"{folder.parent} holds a run that is no shard; give another --out")
    for other in sorted(folder.parent.glob("shard-*-of-*")):
        before = _fingerprint(other)
        if other != folder and before is not None:
            after = json.loads(json.dumps(fingerprint))
            changed = differences({**before, NAME: None}, {**after, NAME: None})
            if changed:
                raise UsageError(
                    f"{other} is a shard of something else: {'; '.join(changed)}; give the same model, data and "
                    "options, or another --out"
                )


def _fingerprint(folder: Path) -> dict[str, Any] | None:
    """None where there is nothing to be read (yet)."""
    path = (folder / DATABASE).resolve()
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=WAIT)) as database:
            ((text,),) = database.execute("SELECT value FROM meta WHERE key = 'fingerprint'").fetchall()
            return dict(json.loads(text))
    except (sqlite3.Error, ValueError):
        return None
