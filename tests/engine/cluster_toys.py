"""Ray clusters of several nodes on this machine, in processes of their own; `python cluster_toys.py 2` is one."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

TOYS = Path(__file__).parent
START_S = 180


def environment(**more: str) -> dict[str, str]:
    """What a process needs to import what the tests import, without what points to a cluster."""
    paths = os.pathsep.join(filter(None, [str(TOYS), *sys.path]))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**kept, "PYTHONPATH": paths, "RAY_worker_niceness": "0", **more}


@contextlib.contextmanager
def cluster(num_nodes: int, **env: str) -> Iterator[str]:
    """The address of a cluster, which ends with the context."""
    command = [sys.executable, __file__, str(num_nodes)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(**env)
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            lines = (line.strip() for line in process.stdout)
            yield next(line.removeprefix("address ") for line in lines if line.startswith("address "))
        finally:
            process.stdin.close()
            process.wait(START_S)


def main() -> None:
    """Run a cluster until the input ends."""
    from ray.cluster_utils import Cluster

    nodes = Cluster()
    for _ in range(int(sys.argv[1])):
        nodes.add_node(num_cpus=1, include_dashboard=False)
    print("address", nodes.address, flush=True)
    sys.stdin.read()
    nodes.shutdown()


if __name__ == "__main__":
    main()
