"""Which Ray cluster a run joins: none but its own, unless it is told to."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from cluster_toys import START_S, cluster, environment

from regrasp.engine.ray.cluster import check_versions, connected
from regrasp.errors import UserError

STARTS = """
import sys
from regrasp.engine.ray.cluster import connected
with connected(None) as machines:
    import ray
    print(len(ray.nodes()), *machines.addresses, machines.is_own, flush=True)
    sys.stdin.read()
"""
JOINS = """
import sys
from regrasp.engine.ray.cluster import connected
from regrasp.errors import UserError
try:
    with connected(sys.argv[1]) as machines:
        print(len(machines.ids), machines.is_own)
except UserError as error:
    print(error)
"""


def joined(address: str, **env: str) -> str:
    command = [sys.executable, "-c", JOINS, address]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(**env), timeout=START_S, check=True)
    assert done.stderr == ""
    return done.stdout


def started(**env: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", STARTS]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment(**env))


def ends(process: subprocess.Popen[str]) -> None:
    """Ends well, having said nothing more."""
    assert process.communicate(timeout=START_S) == ("", "")
    assert process.returncode == 0


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


@pytest.mark.full
def test_runs_beside_each_other_and_beside_a_cluster_keep_to_themselves() -> None:
    with cluster(1) as foreign:
        first, second = started(RAY_ADDRESS=foreign), started()
        assert said(first) == "1 127.0.0.1 True\n"
        assert said(second) == "1 127.0.0.1 True\n"
        for process in (first, second):
            own = psutil.Process(process.pid).children(recursive=True)
            listening = [one.laddr for child in own for one in child.net_connections("tcp") if one.status == "LISTEN"]
            assert len(listening) > 3
            assert {address.ip.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}
        ends(first)
        ends(second)
        assert joined(foreign) == "1 False\n"


@pytest.mark.full
def test_the_cluster_of_another_run_is_not_joined() -> None:
    other = started()
    assert said(other) == "1 127.0.0.1 True\n"
    address = next(
        found.group(1)
        for child in psutil.Process(other.pid).children(recursive=True)
        if (found := re.search(r"--gcs-address=(\S+)", " ".join(child.cmdline())))
    )
    token = psutil.Process(other.pid).children()[0].environ()["RAY_AUTH_TOKEN"]
    assert "There is no Ray cluster to join: what runs on this machine belongs to another run" in joined(
        address, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token
    )
    assert "The Ray cluster does not take this run: " in (refused := joined(address))
    assert "RAY_AUTH_MODE=token" in refused
    ends(other)


UNANSWERED = r"no Ray cluster to join: 127\.0\.0\.1:9 does not answer"


def test_a_cluster_that_is_not_there_is_an_error_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = time.monotonic()
    with (
        pytest.raises(UserError, match=UNANSWERED),
        connected("127.0.0.1:9"),
    ):
        pass
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with pytest.raises(UserError, match=UNANSWERED), connected("auto"):
        pass
    assert time.monotonic() - begun < 10


def test_other_versions_are_named_with_their_machine() -> None:
    here = {"Regrasp": "1.2", "Ray": "2.60.0", "Python": "3.11"}
    check_versions(["10.0.0.1"], [here], here)
    with pytest.raises(UserError, match=r"machine 10.0.0.2 .* has Ray 2.59.0, Python 3.12, and this one Ray 2.60.0, "):
        check_versions(["10.0.0.1", "10.0.0.2"], [here, {**here, "Ray": "2.59.0", "Python": "3.12"}], here)


LOCAL = """
import sys
from regrasp.cli.main import main
assert main(sys.argv[1:]) == 0
assert not [name for name in sys.modules if name == "ray" or name.startswith("ray.")]
"""


@pytest.mark.full
def test_a_run_of_one_process_imports_no_ray(tmp_path: Path) -> None:
    train = ["train", "--config_name", "pick_cube_ppo_mlp", "--num_envs", "2", "--max_iterations", "1"]
    sizes = ["algorithm.rollout_epoch=1", "algorithm.update_epoch=1", "runner.val_check_interval=-1"]
    command = [sys.executable, "-c", LOCAL, *train, *sizes, "env.train.max_steps_per_rollout_epoch=8"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=START_S)
    assert done.returncode == 0, done.stderr


class Number:
    def get(self) -> int:
        return 3


@pytest.mark.full
def test_a_process_that_had_a_cluster_of_its_own_works_in_another() -> None:
    """Ray keeps the token of the first, and processes of the second, which has none, could not reach it."""
    with connected(None):
        pass
    with cluster(1) as address, connected(address):
        actor: Any = ray.remote(num_cpus=0)(Number).remote()
        assert ray.get(actor.get.remote(), timeout=START_S) == 3


TRAINS = "import sys; from regrasp.cli.main import main; sys.exit(main(sys.argv[1:]))"


def processes_of_runs() -> list[psutil.Process]:
    """Those that runs have on the clusters of this test, and what they have started."""
    names = ("ray::actor ", "ray::env ", "ray::rollout ")
    own = [child for child in psutil.Process().children(recursive=True) if " ".join(child.cmdline()).startswith(names)]
    return [*own, *(child for process in own for child in process.children(recursive=True))]


@pytest.mark.full
def test_a_run_that_is_killed_leaves_nothing_on_a_cluster_that_goes_on(tmp_path: Path) -> None:
    with cluster(2) as address:
        command = ["train", "--config_name", "pick_cube_ppo_mlp", "--num_envs", "4", "algorithm.rollout_epoch=1"]
        command += [f"cluster.address={address}", "cluster.num_nodes=2", "runner.save_interval=1"]
        command += ["cluster.component_placement={env:0,rollout:1,actor:2}", "runner.val_check_interval=-1"]
        run = subprocess.Popen([sys.executable, "-c", TRAINS, *command], cwd=tmp_path, env=environment())
        deadline = time.monotonic() + START_S
        while not list(tmp_path.rglob("global_step_1/manifest.json")):
            assert run.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        started = processes_of_runs()
        assert len(started) > 3
        run.kill()
        run.wait()
        _, left = psutil.wait_procs(started, timeout=30)
        assert left == []
        with connected(address) as found:
            assert len(found.ids) == 2
            assert not ray.util.list_named_actors(all_namespaces=True)
