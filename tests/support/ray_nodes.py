"""A Ray cluster of several nodes on this machine, for tests."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

# Ray waits 30 seconds for a node to start, which a machine that is busy with other tests may take: we slow its clock.
SLOWER = 20
MEMORY = {"object_store_memory": 80 * 2**20}


@contextmanager
def ray_nodes(count: int) -> Iterator[Any]:
    """A head without cores, as production clusters have it, and `workers`, nodes of one core each; as RAY_ADDRESS says.

    The test is skipped where Ray is not installed, and where it does not start: it gives itself 30 seconds inside, too.
    """
    pytest.importorskip("ray", reason="ray is not installed: pip install 'certify[ray]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        try:
            cluster = _started(count)
        except Exception as error:
            pytest.skip(f"Ray does not start on this machine now: {error}")
        patch.setenv("RAY_ADDRESS", cluster.address)
        try:
            yield cluster
        finally:
            import ray

            ray.shutdown()
            cluster.shutdown()


class Clock:
    """The module `time`, slower."""

    @staticmethod
    def monotonic() -> float:
        return time.monotonic() / SLOWER

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


def _started(count: int) -> Any:
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray._private.node.time", Clock())
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **MEMORY})
        cluster.workers = [cluster.add_node(num_cpus=1, wait=False, **MEMORY) for _ in range(count)]
    cluster.wait_for_nodes(timeout=30 * SLOWER)
    return cluster
