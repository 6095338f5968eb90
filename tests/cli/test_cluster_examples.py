"""The examples for real clusters: they parse, and their commands are ones that the command line takes."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from regrasp.cli.main import main
from regrasp.engine.placement import NodeResources, Resources

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples" / "cluster"
SLURM, RAYJOB = EXAMPLES / "slurm.sh", EXAMPLES / "rayjob.yaml"
FOUR_GPUS = NodeResources((80 * 2**30,) * 4, 32, 256 * 2**30)
CLUSTER_FIELDS = {"rayVersion", "headGroupSpec", "workerGroupSpecs"}
"""Of a RayClusterSpec, those that are used; and so on below, see the API reference of KubeRay."""


def rayjob() -> dict[str, Any]:
    return yaml.safe_load(RAYJOB.read_text())


def of_slurm() -> list[str]:
    command = SLURM.read_text().partition("\nregrasp ")[2].replace("\\\n", " ")
    known = {"$head_ip:$port": "10.0.0.1:20000", "$SLURM_JOB_NUM_NODES": "2"}
    for name, value in known.items():
        command = command.replace(name, value)
    assert "$" not in command
    return shlex.split(command)


def of_rayjob() -> list[str]:
    shell, flag, text = shlex.split(rayjob()["spec"]["entrypoint"])
    assert (shell, flag) == ("sh", "-c")
    arguments = shlex.split(text.partition("&& ")[2])
    assert arguments[0] == "regrasp"
    return arguments[1:]


@pytest.mark.parametrize("command", [of_slurm, of_rayjob])
def test_the_command_of_an_example_is_rehearsed(
    command: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Resources, "of_this_machine", lambda count: Resources((FOUR_GPUS,) * count))
    assert main([*command(), "--dry_run"]) == 0
    out, err = capsys.readouterr()
    assert "# processes: 8, colocated: 8 actor, 8 env, 8 rollout" in out
    assert "#   actor+env+rollout 0-7: nodes 0-1, cuda:0-3; " in out
    assert [line for line in err.splitlines() if line.startswith("error")] == []


def test_the_slurm_script_is_one() -> None:
    subprocess.run(["bash", "-n", str(SLURM)], check=True)
    options = re.findall(r"^#SBATCH --([a-z-]+)", SLURM.read_text(), re.M)
    assert {"nodes", "ntasks-per-node", "gpus-per-node", "time"} < set(options)


def test_the_manifest_is_a_rayjob() -> None:
    job = rayjob()
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    assert set(spec) == {
        "entrypoint", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished", "backoffLimit", "rayClusterSpec",
    }  # fmt: skip
    cluster = spec["rayClusterSpec"]
    assert set(cluster) == CLUSTER_FIELDS
    assert f"ray=={cluster['rayVersion']}\n" in (EXAMPLES.parents[2] / "constraints.txt").read_text()
    assert set(cluster["headGroupSpec"]) == {"rayStartParams", "template"}
    (workers,) = cluster["workerGroupSpecs"]
    assert set(workers) == {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}
    assert workers["minReplicas"] == workers["replicas"] == workers["maxReplicas"] == 2
    for group in (cluster["headGroupSpec"], workers):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert set(container) == {"name", "image", "resources", "volumeMounts"}
        assert container["resources"]["requests"] == container["resources"]["limits"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts["shared"] == "/shared"
        assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
