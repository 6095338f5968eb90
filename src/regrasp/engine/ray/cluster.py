"""Ray's own processes: a cluster of this run's own, or one that was started before."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from regrasp.engine.placement import NodeResources, Resources
from regrasp.errors import UserError

_LOOPBACK = "127.0.0.1"
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",
    "RAY_preload_python_modules": "regrasp.engine.ray.worker",
}
"""Ray's environment. Workers have the driver's priority, by default they give way to everything else that runs; and
those that wait for work have imported what it needs."""


@dataclass(frozen=True)
class Machines:
    """The nodes of a cluster, this machine first."""

    ids: tuple[str, ...]
    addresses: tuple[str, ...]
    resources: Resources


@contextlib.contextmanager
def connected(address: str | None, num_processes: int = 1) -> Iterator[Machines]:
    """Start a cluster of this machine alone, or join one.

    Args:
        address: None: a cluster of this run's own, whose servers bind to loopback; "auto" or "host:port" of one that
            runs.
        num_processes: So many begin to start with a cluster of this run's own.

    Raises:
        UserError: There is none to join.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    quiet = {"log_to_driver": False, "configure_logging": False, "logging_level": logging.ERROR}
    try:
        if address is None:
            own = {"num_cpus": num_processes, "include_dashboard": False, "_node_ip_address": _LOOPBACK}
            ray.init(address="local", **own, **quiet)
        else:
            ray.init(address=address, **quiet)
    except ConnectionError as error:
        raise UserError(
            f"There is no Ray cluster to join: {error}",
            key="cluster.address",
            value=address,
            expected="auto, or host:port, of a cluster that runs",
            fix="start it with `ray start --head` on the first machine and `ray start --address=HOST:6379` on the"
            " others, or leave cluster.address out",
        ) from error
    try:
        yield _machines()
    finally:
        ray.shutdown()


def _machines() -> Machines:
    own = ray.get_runtime_context().get_node_id()
    nodes = sorted((node for node in ray.nodes() if node["Alive"]), key=lambda node: node["NodeID"] != own)
    ids = tuple(node["NodeID"] for node in nodes)
    measure = ray.remote(num_cpus=0)(_measured)
    others = ray.get([measure.options(scheduling_strategy=on_node(other)).remote() for other in ids[1:]])
    return Machines(ids, tuple(node["NodeManagerAddress"] for node in nodes), Resources((_measured(), *others)))


def on_node(node_id: str) -> NodeAffinitySchedulingStrategy:
    """Where something is to run."""
    return NodeAffinitySchedulingStrategy(node_id, soft=False)


def _measured() -> NodeResources:
    return Resources.of_this_machine().nodes[0]


def free_port(node_id: str) -> int:
    """A port that is free on a machine."""
    find = ray.remote(num_cpus=0)(_free_port)
    return ray.get(find.options(scheduling_strategy=on_node(node_id)).remote())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]
