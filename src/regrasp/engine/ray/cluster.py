"""Ray's own processes: a cluster of this run's own, or one that was started before."""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import logging
import os
import platform
import secrets
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import ray
import torch
from ray._private import parameter as ray_parameter
from ray._private import ray_constants
from ray._private import services as ray_services
from ray._private import utils as ray_utils
from ray._private import worker as ray_worker
from ray._private.state import actors
from ray._raylet import (  # it has no stubs
    AuthenticationTokenLoader,  # pyright: ignore[reportAttributeAccessIssue]
    Config,  # pyright: ignore[reportAttributeAccessIssue]
)
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import regrasp
from regrasp.engine.placement import NodeResources, Resources
from regrasp.errors import UserError

_LOOPBACK = "127.0.0.1"
_OWN = "regrasp_run"
"""Resource of a cluster that belongs to one run."""
_TOKEN = secrets.token_hex(32)
"""What the processes of this run's own cluster know each other by: other users of the machine reach loopback too."""
_OWN_SETTINGS = {
    "RAY_AUTH_TOKEN": _TOKEN,
    "RAY_worker_niceness": "0",
    "RAY_preload_python_modules": "regrasp.engine.ray.worker",
}
"""Processes have this one's priority, while Ray's own setting has them give way to all else that runs; and those that
wait for work have imported what it needs."""
_CHANGED_BY_RAY = ("RAY_AUTH_MODE",)
_SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
_KEEP_LOOPBACK = {"ENABLE_RAY_CLUSTER": False}
"""On Linux, Ray puts an address that others reach in the place of a loopback address."""
_QUIET = {"listen_error_messages": lambda *_: None}
"""Ray would print what its servers say of a process that has died, which this run says itself."""
_NO_MONITORS = {
    "RayParams": functools.partial(
        ray_parameter.RayParams,
        no_monitor=True,
        include_log_monitor=False,  # pyright: ignore[reportArgumentType]
    )
}
_NO_DASHBOARD = {"start_api_server": lambda *_, **__: ("", None)}
"""A run's own cluster neither grows nor shows its logs or a dashboard: three processes that need not start."""
_LEAVE_SIGNALS = {"set_sigterm_handler": lambda _: None}
"""Ray would end the process at once."""
_LOCAL = (_LOOPBACK, "localhost")
_ANSWER_S = 5.0
_SURVEY_S = 120.0
_START = "start it with `ray start --head` on the first machine and `ray start --address=HOST:6379` on the others"


@dataclass(frozen=True)
class Machines:
    """The nodes of a cluster, this machine first."""

    ids: tuple[str, ...]
    addresses: tuple[str, ...]
    resources: Resources
    is_own: bool
    """Whether the cluster is this run's, and all of it on this machine."""
    folder: Path
    """Ray's own on this machine for this cluster, in which its logs are."""


@contextlib.contextmanager
def connected(address: str | None, num_processes: int = 1) -> Iterator[Machines]:
    """Start a cluster of this machine alone, or join one.

    Args:
        address: None: a cluster of this run's own, whose servers bind to loopback; "auto" or "host:port" of one that
            runs.
        num_processes: So many begin to start with a cluster of this run's own.

    Raises:
        UserError: There is none to join, or its machines cannot run what this one runs.
    """
    logging.getLogger("ray").setLevel(logging.CRITICAL)  # what goes wrong comes as an exception
    with _environment(_SETTINGS if address is not None else {**_SETTINGS, **_OWN_SETTINGS}):
        try:
            if address is None:
                _start_own(num_processes)
            else:
                _join(address)
            yield _machines(address)
        finally:
            ray.shutdown()


def _start_own(num_processes: int) -> None:
    """Start a cluster of this run's own.

    Raises:
        UserError: Its servers do not come up, on a machine that is too busy for example.
    """
    own = {"num_cpus": num_processes, "resources": {_OWN: 1}, "_node_ip_address": _LOOPBACK}
    try:
        with (
            _put(ray_constants, _KEEP_LOOPBACK),
            _put(ray_parameter, _NO_MONITORS),
            _put(ray_services, _NO_DASHBOARD),
        ):
            _init("local", include_dashboard=False, **own)
    except Exception as error:  # Ray has no type of its own for this
        raise UserError(
            f"Ray's servers did not start: {' '.join(str(error).split())}",
            key="cluster.component_placement",
            expected="a machine that has time and memory for Ray's servers",
            fix="try again when the machine is less busy, or place all roles in one process, which needs no Ray:"
            " cluster.component_placement: {'actor,env,rollout': 0}",
        ) from error


def _init(address: str, **options: Any) -> None:
    with _put(ray_worker, _QUIET), _put(ray_utils, _LEAVE_SIGNALS):
        ray.init(address=address, log_to_driver=False, configure_logging=False, **options)


@contextlib.contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Settings for Ray, which its servers inherit; what it has read of them itself it forgets afterwards."""
    before = {name: os.environ.get(name) for name in (*settings, *_CHANGED_BY_RAY)}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is not None:
                os.environ[name] = value
            elif name in os.environ:
                del os.environ[name]
        Config.initialize("")
        AuthenticationTokenLoader.instance().reset_cache()  # the next cluster may have no token


@contextlib.contextmanager
def _put(module: ModuleType, values: Mapping[str, Any]) -> Iterator[None]:
    """What Ray has no argument for, in the place of its own for as long as it starts."""
    before = {name: getattr(module, name) for name in values}
    for name, value in values.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """Keep what Ray's C++ parts write on stderr while they try to connect from the terminal."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _join(address: str) -> None:
    """Join a cluster that runs.

    Raises:
        UserError: There is none, or it does not take this process.
    """
    known = os.environ.get("RAY_ADDRESS", address) if address == "auto" else address
    constants: dict[str, Any] = {"NUM_REDIS_GET_RETRIES": 1}
    if known != "auto" and _reached(address, known) in _LOCAL:
        constants |= _KEEP_LOOPBACK
    try:
        with _put(ray_constants, constants), _unheard():
            _init(address, runtime_env={"env_vars": _SETTINGS})
    except (ConnectionError, RuntimeError, RayError) as error:
        cause = error.__cause__ or error
        if cause is error and isinstance(error, ConnectionError):
            raise _nothing(address, str(error)) from error
        lines = str(cause).strip().splitlines()
        why = lines[-1] if any("Traceback" in line for line in lines) else " ".join(map(str.strip, lines))
        raise UserError(
            f"The Ray cluster does not take this run: {why}",
            key="cluster.address",
            value=address,
            expected="a cluster of the same versions of Ray and Python, of which this machine is a part",
            fix="install the same versions everywhere, run `ray start` on this machine too, and where the cluster asks"
            " for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH (docs/scaling.md)",
        ) from error
    if _OWN in ray.cluster_resources():
        raise _nothing(address, "what runs on this machine belongs to another run of Regrasp")


def _reached(address: str, known: str) -> str:
    """The host of a server that answers.

    Raises:
        UserError: Nothing listens there; Ray itself would try for minutes.
    """
    host, _, port = known.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S).close()
    except (OSError, ValueError) as error:
        raise _nothing(address, f"{known} does not answer ({error})") from error
    return host


def _nothing(address: str, why: str) -> UserError:
    return UserError(
        f"There is no Ray cluster to join: {why}",
        key="cluster.address",
        value=address,
        expected="auto, or host:port, of a cluster that runs",
        fix=f"{_START}, or leave cluster.address out",
    )


@dataclass(frozen=True)
class _Survey:
    """What is known of a node once something has run there."""

    versions: Mapping[str, str]
    resources: NodeResources


def _survey() -> _Survey:
    versions = {
        "Regrasp": regrasp.__version__,
        "Python": ".".join(platform.python_version_tuple()[:2]),
        "Ray": ray.__version__,
        "torch": torch.__version__.partition("+")[0],  # without its build: a head node may have no accelerator
    }
    return _Survey(versions, Resources.of_this_machine().nodes[0])


def _machines(address: str | None) -> Machines:
    """All machines that take work, this one first and then in the order of their addresses."""
    own = ray.get_runtime_context().get_node_id()
    nodes = [node for node in ray.nodes() if node["Alive"] and ({"CPU", "GPU"} & set(node["Resources"]))]
    nodes.sort(key=lambda node: (node["NodeID"] != own, _in_order(node["NodeManagerAddress"]), node["NodeID"]))
    ids = tuple(node["NodeID"] for node in nodes)
    addresses = tuple(node["NodeManagerAddress"] for node in nodes)
    survey = ray.remote(num_cpus=0, max_retries=0)(_survey)
    replies = [survey.options(scheduling_strategy=on_node(one)).remote() for one in ids[1:]]
    here = _survey()
    try:
        found = [here, *(_surveyed(where, reply) for where, reply in zip(addresses[1:], replies, strict=True))]
        check_versions(addresses, [one.versions for one in found], here.versions)
    except UserError as error:
        raise error.at(None, "cluster.address") from None
    return Machines(ids, addresses, Resources(tuple(one.resources for one in found)), address is None, session_folder())


def _surveyed(where: str, reply: Any) -> _Survey:
    """What a node has told.

    Raises:
        UserError: It cannot run Regrasp.
    """
    try:
        return ray.get(reply, timeout=_SURVEY_S)
    except (RayError, GetTimeoutError) as error:
        why = str(error).strip().splitlines()[-1:] or ["it does not answer"]
        raise _unfit(f"The machine {where} of the Ray cluster does not run Regrasp: {why[0]}", where) from error


def check_versions(addresses: Sequence[str], found: Sequence[Mapping[str, str]], here: Mapping[str, str]) -> None:
    """Raise a `UserError` where a machine has other versions than this one."""
    for where, versions in zip(addresses, found, strict=True):
        other = [f"{name} {version}" for name, version in versions.items() if version != here[name]]
        if other:
            mine = ", ".join(f"{name} {here[name]}" for name in versions if versions[name] != here[name])
            raise _unfit(f"The machine {where} of the Ray cluster has {', '.join(other)}, and this one {mine}", where)


def _unfit(problem: str, where: str) -> UserError:
    return UserError(
        problem,
        expected="the same versions of Regrasp, Python, Ray and torch on every machine of the cluster",
        fix=f"install them on {where}, for the Python that `ray start` runs there",
    )


def _in_order(address: str) -> tuple[int, int, str]:
    """Sorts addresses as numbers, and names after them."""
    try:
        number = ipaddress.ip_address(address)
    except ValueError:
        return 1, 0, address
    return 0, int(number), address


def session_folder() -> Path:
    """Ray's folder of the cluster on the machine of this process."""
    node = ray_worker._global_node
    assert node is not None, "Ray has not been started"
    return Path(node.get_session_dir_path())


def on_node(node_id: str) -> NodeAffinitySchedulingStrategy:
    """Where something is to run."""
    return NodeAffinitySchedulingStrategy(node_id, soft=False)


def number_of(actor: Any) -> int:
    """The number of an actor's process on its machine, which stays known when it has died; 0: it never had one."""
    return int(actors(actor._actor_id.hex()).get("Pid", 0))


def free_port(node_id: str) -> int:
    """A port that is free on a machine."""
    find = ray.remote(num_cpus=0)(_free_port)
    return ray.get(find.options(scheduling_strategy=on_node(node_id)).remote())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]
