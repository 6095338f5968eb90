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
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_IGNORE_UNHANDLED_ERRORS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@dataclass(frozen=True)
class Machines:
    """The nodes of a cluster, this machine first."""

    ids: tuple[str, ...]
    addresses: tuple[str, ...]
    resources: Resources


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[Machines]:
    """Start a cluster of this machine alone, or join one.

    Args:
        address: None: a cluster of this run's own, whose servers bind to loopback; "auto" or "host:port" of one that
            runs.

    Raises:
        UserError: There is none to join.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    quiet = {"log_to_driver": False, "configure_logging": False, "logging_level": logging.ERROR}
    try:
        if address is None:
            ray.init(address="local", num_cpus=1, include_dashboard=False, _node_ip_address=_LOOPBACK, **quiet)
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
    found = ray.get([measure.options(scheduling_strategy=on_node(one)).remote() for one in ids])
    return Machines(ids, tuple(node["NodeManagerAddress"] for node in nodes), Resources(tuple(found)))


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
