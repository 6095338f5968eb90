"""What a machine of a cluster has to see and to have for its processes, and how they find their place on it."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import psutil
import ray
from ray.exceptions import GetTimeoutError, RayError

from regrasp.engine.placement import Plan
from regrasp.engine.ray.cluster import Machines, on_node, session_folder
from regrasp.engine.sizing import Sizing
from regrasp.envs.registry import preflight
from regrasp.errors import UserError
from regrasp.experiment import ExperimentConfig
from regrasp.experiment.machine import Room, shortages
from regrasp.logging.text import printable

Result = TypeVar("Result")
_ANSWER_S = 10.0
_LAST_LINES = 20
_MARKS = (":job_id:", ":actor_name:", ":task_name:")
"""How lines begin that Ray writes into logs for itself."""
_TITLE = "ray::"
"""How the titles of Ray's processes begin while they are at work."""
_LOOK_S = 5.0
"""A network file system may show a new file this late."""


def require_shared(machines: Machines, plan: Plan, run_dir: Path, inputs: Mapping[str, Path]) -> None:
    """Raise a `UserError` where a machine does not see what its processes read and write.

    Args:
        machines: The cluster.
        plan: The processes of the run.
        run_dir: Folder of the run, in which each machine looks for a file that is written here.
        inputs: Folders that have to be there, by the key that names them.
    """
    if machines.is_own:
        return
    marker = run_dir / f".seen-{secrets.token_hex(8)}"
    paths = {**inputs, "runner.logger.log_path": marker}
    nodes = sorted({process.node for process in plan.processes if process.roles & {"actor", "rollout"}})
    look = ray.remote(num_cpus=0)(_unseen)
    marker.touch()
    try:
        replies = [
            look.options(scheduling_strategy=on_node(machines.ids[node])).remote([str(path) for path in paths.values()])
            for node in nodes
        ]
        for node, unseen in zip(nodes, ray.get(replies), strict=True):
            for key, path in paths.items():
                if str(path) in unseen:
                    raise _not_shared(machines.addresses[node], key, path.parent if path == marker else path)
    finally:
        marker.unlink()


def require_room(machines: Machines, plan: Plan, config: ExperimentConfig) -> None:
    """Raise a `UserError` where a machine of a cluster is too small for the environments that it is to have."""
    if machines.is_own:
        return
    specs = {name: preflight(env, name, config.actor.model.action_dim) for name, env in vars(config.env).items()}
    sizing = Sizing(plan, config, machines.resources, specs, None)
    nodes = sorted({process.node for process in plan.of("env")})
    measure = ray.remote(num_cpus=0)(Room.of_this_machine)
    rooms = ray.get([measure.options(scheduling_strategy=on_node(machines.ids[node])).remote() for node in nodes])
    for node, room in zip(nodes, rooms, strict=True):
        for shortage in shortages(sizing.needs_on(node), room, machines.addresses[node]):
            raise shortage


def _not_shared(address: str, key: str, path: Path) -> UserError:
    return UserError(
        f"The machine {address} of the Ray cluster does not have what is at this path here",
        file=path,
        key=key,
        expected="a folder that all machines share under one path, such as one of a network file system",
        fix=f"mount it on {address}, or move it to where it is shared (docs/scaling.md)",
    )


def _unseen(paths: Iterable[str]) -> set[str]:
    """Those of some paths at which there is nothing here."""
    unseen, deadline = set(paths), time.monotonic() + _LOOK_S
    while True:
        unseen = {path for path in unseen if not Path(path).exists()}
        if not unseen or time.monotonic() > deadline:
            return unseen
        time.sleep(0.2)


def last_words(machines: Machines, node: int, pids: Mapping[str, int]) -> str:
    """The end of what those of some processes of a machine have written that have died; empty if all live.

    Args:
        machines: The cluster.
        node: Number of the machine.
        pids: The processes, by name.
    """
    try:
        return _on(machines, node, _last_words, pids)
    except (RayError, GetTimeoutError):
        return f"The machine {machines.addresses[node]} does not answer: what its processes have written is there."


def end_hung(machines: Machines, node: int, pids: Mapping[str, int]) -> None:
    """End those of some processes that are still there after Ray has told them to end, see `last_words`.

    Where the machine does not answer, they end with it.
    """
    with contextlib.suppress(RayError, GetTimeoutError):
        _on(machines, node, _end, pids)


def _on(
    machines: Machines, node: int, function: Callable[[Mapping[str, int]], Result], pids: Mapping[str, int]
) -> Result:
    """The result of a function on a machine, which is this one or has to answer in time."""
    if not node:
        return function(pids)
    there = ray.remote(num_cpus=0, max_retries=0)(function)
    return ray.get(there.options(scheduling_strategy=on_node(machines.ids[node])).remote(pids), timeout=_ANSWER_S)


def _end(pids: Mapping[str, int]) -> None:
    for pid in pids.values():
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if "".join(process.cmdline()[:1]).startswith(_TITLE):  # and no other's that has got its number
                process.kill()


def _last_words(pids: Mapping[str, int]) -> str:
    return "\n".join(_end_of_log(name, pid) for name, pid in pids.items() if not _lives(pid))


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _end_of_log(name: str, pid: int) -> str:
    logs = session_folder() / "logs"
    for file in logs.glob(f"worker-*-{pid}.err"):
        lines = [line for line in file.read_text(errors="replace").splitlines() if not line.startswith(_MARKS)]
        if lines:
            return "\n".join(
                [f"{name} (process {pid}) has died. The end of {file}:", *map(printable, lines[-_LAST_LINES:])]
            )
    return f"{name} (process {pid}) has died. It has written nothing to {logs}."


def settle(folder: Path, address: str) -> None:
    """Make this process one of a run: in the folder of its command, exchanging over the network of its cluster.

    Args:
        folder: What relative paths begin at; a machine that does not have it has no such paths either.
        address: The address by which this machine is a part of the cluster.
    """
    if folder.is_dir():
        os.chdir(folder)
    for name, addresses in psutil.net_if_addrs().items():
        if any(own.address == address for own in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
            os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={name}")
