"""Who decides samples is what the user said, and nobody else where that is one."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext

import pytest

from certify.errors import UsageError
from certify.executors.choose import Hands, check, cores, executor, free_cores, parse_hands
from certify.executors.cluster import Fleet
from certify.executors.processes import Crew


def test_workers_are_a_number_or_as_many_as_there_are() -> None:
    found = [parse_hands(w, "processes", option="--workers").workers for w in (1, "7", " 2 ", "auto", 0, None)]
    assert found == [1, 7, 2, 0, 0, 1]
    assert parse_hands(None, "ray", option="--workers") == Hands(0, "ray")
    for bad in ("", "-1", "1.5", "many", -3, "99999"):
        with pytest.raises(UsageError, match=r"--workers .*give a number of workers, or auto"):
            parse_hands(bad, "processes", option="--workers")
    with pytest.raises(UsageError, match="choose one of processes, ray"):
        parse_hands(1, "dask", option="--workers")


def test_one_worker_is_this_process_and_auto_one_per_core() -> None:
    with executor(Hands(1), len, "cpu") as nobody:
        assert nobody is None
    chosen = executor(Hands(0), len, "cpu")
    assert isinstance(chosen, Crew) if cores() > 1 else isinstance(chosen, nullcontext)
    three = executor(Hands(3), len, "cpu")
    assert isinstance(three, Crew)
    assert (three.count, three.together) == (3, 3)


def test_nobody_takes_more_cores_than_the_process_has_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(6)), raising=False)
    for told, found in (("", 6), ("1", 1), ("4", 4), ("64", 6), ("0", 6), ("many", 6)):
        monkeypatch.setenv("OMP_NUM_THREADS", told)
        assert free_cores() == min(found, max(1, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 30))
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {3}, raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert free_cores() == 1


def test_processes_are_spread_over_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("certify.executors.choose.may_have_gpus", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    one_each, five = executor(Hands(0), len, "auto"), executor(Hands(5), len, "cuda")
    assert isinstance(one_each, Crew)
    assert isinstance(five, Crew)
    assert (one_each.count, one_each.together) == (2, 1)
    assert (five.count, five.together) == (5, 3)
    named = executor(Hands(2), len, "cuda:1")
    assert isinstance(named, Crew)
    assert named.together == 2, "all on the GPU that was named"


def test_a_cluster_has_no_gpu_that_one_machine_names() -> None:
    assert isinstance(executor(Hands(0, "ray"), len, "auto"), Fleet)
    with pytest.raises(UsageError, match="cuda:1 names a GPU of one machine"):
        check(Hands(0, "ray"), "cuda:1")
    check(Hands(3), "cuda:1")


def test_a_missing_ray_is_told_before_anything_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'certify\[ray\]'"):
        check(Hands(0, "ray"), "auto")
