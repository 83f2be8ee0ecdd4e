"""A Ray cluster of several nodes on this machine, for tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

MEMORY = {"object_store_memory": 80 * 2**20}


@contextmanager
def ray_nodes(count: int) -> Iterator[Any]:
    """A head without cores, as production clusters have it, and `workers`, nodes of one core each; as RAY_ADDRESS says.

    The test is skipped where Ray is not installed, and where it does not start: it gives itself 30 seconds.
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


def _started(count: int) -> Any:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **MEMORY})
    cluster.workers = [cluster.add_node(num_cpus=1, **MEMORY) for _ in range(count)]
    return cluster
