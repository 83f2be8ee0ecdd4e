"""Which executor a run has: none (this process decides), processes of this machine, or a Ray cluster."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from certify.errors import UsageError
from certify.executors.base import Executor

T = TypeVar("T")
R = TypeVar("R")

EXECUTORS = ("processes", "ray")
PROCESS_BYTES = 1 << 30  # of a process with torch, a network of some million weights, and a frontier


@dataclass(frozen=True)
class Hands:
    """Who decides samples. workers: how many; 0: one per core, or per GPU where samples are decided on GPUs."""

    workers: int = 1
    executor: str = "processes"


def parse_hands(workers: int | str | None, executor: str, *, option: str) -> Hands:
    """None: one process, or all of a cluster; 0 and "auto": one per core or GPU. Raises UsageError."""
    if executor not in EXECUTORS:
        raise UsageError(f"executor {executor!r} is not known; choose one of {', '.join(EXECUTORS)}")
    given = (1 if executor == "processes" else 0) if workers is None else workers
    text = "0" if str(given).strip() == "auto" else str(given).strip()
    if re.fullmatch(r"\d{1,4}", text) is None:
        raise UsageError(f"{option} {workers}: give a number of workers, or auto for one per core or GPU")
    return Hands(int(text), executor)


def check(hands: Hands, device: str) -> None:
    """Raises UsageError where `executor` would, before anything is written."""
    if hands.executor == "ray":
        if ":" in device:
            raise UsageError(f"--device {device} names a GPU of one machine; --executor ray takes auto, cpu or cuda")
        from certify.executors.cluster import knock

        knock()


def executor(hands: Hands, work: Callable[[T], R], device: str) -> AbstractContextManager[Executor[T, R] | None]:
    """To be entered; None where this process shall do the work. device: as in certify.settings."""
    if hands.executor == "ray":
        from certify.executors.cluster import Fleet

        return Fleet(work, hands.workers or None, gpus=device != "cpu")
    if hands.workers == 1:
        return nullcontext()
    from certify.executors.processes import Crew

    cards = _cards(device)
    count = hands.workers or len(cards) or cores()
    return nullcontext() if count == 1 else Crew(work, count, cards)


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_cores() -> int:
    """Processes where nobody said how many: one per core that this one may use, no more than OMP_NUM_THREADS says, nor
    than the memory has room for.
    """
    told, found = os.environ.get("OMP_NUM_THREADS", ""), cores()
    if told.isdigit() and int(told):
        found = min(found, int(told))
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        found = min(found, max(1, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // PROCESS_BYTES))
    return found


def helpers(work: Callable[[T], R], most: int) -> Executor[T, R] | None:
    """Others for one search that takes long, entered; in a worker as many as have nothing to do, None: nobody has."""
    cluster = sys.modules.get("certify.executors.cluster")
    if cluster is not None and cluster.is_worker():
        found: Executor[T, R] | None = cluster.helpers(work, most)
        return found
    from certify.executors.processes import helpers as processes

    return processes(work, most)


def may_have_gpus() -> bool:
    """Is there a sign of CUDA? Where there is none, nobody needs to import torch to be told that there is none."""
    return sys.platform != "linux" or any(Path(name).exists() for name in ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd"))


def _cards(device: str) -> tuple[str, ...]:
    """The GPUs over which processes are spread, as CUDA_VISIBLE_DEVICES names them; none where one was named."""
    if device not in ("auto", "cuda") or not may_have_gpus():
        return ()
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return tuple(named or map(str, range(count)))[:count]
