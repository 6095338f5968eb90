"""`make` and its scripts, with stand-ins for pip, apt-get and nvidia-smi: which command is run on which machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from regrasp.envs.mujoco.backend import PACKAGES

ROOT = Path(__file__).resolve().parents[2]
TORCH = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch=="))
HAS_GPU = Path("/dev/nvidia0").exists()
TOOLS = ("sh", "sed", "uname", "mkdir", "cp", "touch", "rm", "cat", "make")


@dataclass
class Machine:
    """A folder that plays a clone of the repository, and a PATH with nothing on it but what a test puts there."""

    clone: Path
    bin: Path

    def program(self, name: str, body: str) -> Path:
        file = self.bin / name
        file.write_text(f"#!/bin/sh\n{body}\n")
        file.chmod(0o755)
        return file

    def python(self, *, pip_fails_for: str = "nothing", torchvision: bool = False, renders: str = "exit 0") -> None:
        """A `python3` that writes down every call of pip, and answers the rest as a Python with regrasp would."""
        body = f"""
case "$*" in
    *"-m venv .venv") mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
    *"pip --version") exit 0 ;;
    *"pip install"*)
        shift 2
        echo "$*" >> calls
        case "$*" in *"{pip_fails_for}"*) echo "ERROR: not found" >&2; exit 1 ;; esac ;;
    *distributions*) if [ -e torch ]; then cat torch; fi ;;
    *torchvision*) exit {0 if torchvision else 1} ;;
    *"doctor --rendering") echo doctor >> calls; {renders} ;;
    *) PYTHONPATH={ROOT / "src"!s} exec '{sys.executable}' "$@" ;;
esac"""
        self.program("python3", body)

    def run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": str(self.bin)}  # none of the variables of the make that may have started these tests
        return subprocess.run(command, cwd=self.clone, env=environment, capture_output=True, text=True)

    def calls(self) -> list[str]:
        file = self.clone / "calls"
        return file.read_text().splitlines() if file.exists() else []


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    clone = tmp_path / "a clone"
    (clone / "scripts").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "scripts/install.sh", "scripts/install_rendering.sh"):
        shutil.copy(ROOT / name, clone / name)
    (tmp_path / "bin").mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found
        (tmp_path / "bin" / tool).symlink_to(found)
    machine = Machine(clone, tmp_path / "bin")
    machine.program("uname", "echo Linux")
    return machine


REST = "install --constraint constraints.txt --editable .[dev]"
no_gpu = pytest.mark.skipif(HAS_GPU, reason="this machine has an NVIDIA GPU")


@no_gpu
def test_cpu_build_where_there_is_no_gpu(machine: Machine):
    machine.python()
    assert machine.run("make", "setup").returncode == 0
    assert machine.calls() == [f"install --no-deps {TORCH}+cpu", REST]


@no_gpu
def test_torch_index_serves_torch_alone(machine: Machine):
    machine.python()
    assert machine.run("make", "setup", "TORCH_INDEX=https://index.example/cpu").returncode == 0
    assert machine.calls() == [f"install --no-deps --index-url https://index.example/cpu {TORCH}+cpu", REST]


@no_gpu
def test_standard_build_where_the_cpu_build_is_not_to_be_had(machine: Machine):
    machine.python(pip_fails_for="+cpu")
    result = machine.run("make", "setup")
    assert result.returncode == 0
    assert machine.calls() == [f"install --no-deps {TORCH}+cpu", f"install --no-deps {TORCH}", REST]
    assert "TORCH_INDEX" in result.stderr
    assert "pip: ERROR: not found" in result.stderr


def test_standard_build_for_a_gpu(machine: Machine):
    machine.program("nvidia-smi", "exit 0")
    machine.python()
    assert machine.run("make", "setup").returncode == 0
    assert machine.calls() == [f"install --no-deps {TORCH}", REST]


def test_standard_build_on_a_mac(machine: Machine):
    (machine.bin / "uname").unlink()
    machine.program("uname", "echo Darwin")
    machine.python()
    assert machine.run("make", "setup").returncode == 0
    assert machine.calls() == [f"install --no-deps {TORCH}", REST]


def test_torch_of_the_pinned_version_is_left_alone(machine: Machine):
    (machine.clone / "torch").write_text(f"{TORCH.removeprefix('torch==')}+cu130\n")
    machine.python()
    assert machine.run("make", "setup").returncode == 0
    assert machine.calls() == [REST]


def test_setup_runs_again_only_for_new_requirements(machine: Machine):
    machine.python()
    assert machine.run("make", "setup").returncode == 0
    done = machine.calls()
    assert machine.run("make", "setup").returncode == 0
    assert machine.calls() == done
    installed = machine.clone / ".venv" / ".development-installed"
    later = installed.stat().st_mtime + 10
    os.utime(machine.clone / "constraints.txt", (later, later))
    assert machine.run("make", "setup").returncode == 0
    assert machine.calls() == done * 2


def test_failed_install_is_tried_again(machine: Machine):
    machine.python(pip_fails_for="--editable")
    assert machine.run("make", "setup").returncode != 0
    assert not (machine.clone / ".venv" / ".development-installed").exists()


def test_torchvision_is_refused(machine: Machine):
    machine.python(torchvision=True)
    result = machine.run("make", "setup")
    assert result.returncode != 0
    assert "pip uninstall torchvision" in result.stderr


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("exit 127", "does not run"),
        ('case "$*" in *%d*) echo 3.9 ;; *) exit 1 ;; esac', "3.11 or newer is needed, and 'python3' is 3.9"),
        ('case "$*" in *%d*) echo 3.12 ;; *ensurepip*) exit 1 ;; esac', "sudo apt-get install python3.12-venv"),
    ],
)
def test_unfit_python_is_refused_in_words(machine: Machine, body: str, message: str):
    machine.program("python3", body)
    result = machine.run("make", "setup")
    assert result.returncode != 0
    assert message in result.stderr
    assert not (machine.clone / ".venv").exists()


def test_quickstart_runs_the_command_with_its_seed_and_arguments(machine: Machine):
    machine.python()
    machine.run("make", "setup")
    command = machine.clone / ".venv" / "bin" / "regrasp"
    command.write_text('#!/bin/sh\necho "regrasp $*" >> calls\n')
    command.chmod(0o755)
    assert machine.run("make", "quickstart", "SEED=3", "ARGS=runner.max_epochs=1").returncode == 0
    assert machine.calls()[-2:] == ["doctor", "regrasp quickstart --seed 3 runner.max_epochs=1"]


def test_quickstart_stops_where_nothing_renders(machine: Machine):
    machine.python(renders="exit 2")
    machine.program("apt-get", "echo apt-get >> calls")
    machine.program("id", "echo 1000")
    result = machine.run("make", "quickstart")
    assert result.returncode != 0
    assert f"    sudo apt-get install --yes {' '.join(PACKAGES)}\n" in result.stderr
    assert machine.calls()[-1] == "doctor"


def test_root_installs_what_rendering_needs(machine: Machine):
    machine.python(renders="[ -e mesa ] || exit 2")
    machine.program("apt-get", 'echo "apt-get $*" >> calls; [ "$1" = update ] || touch mesa')
    machine.program("id", "echo 0")
    result = machine.run("sh", "scripts/install_rendering.sh", "python3")
    assert result.returncode == 0, result.stderr
    packages = " ".join(PACKAGES)
    update, install = "apt-get update", f"apt-get install --yes --no-install-recommends {packages}"
    assert machine.calls() == ["doctor", update, install, "doctor"]


def test_no_package_manager_no_command(machine: Machine):
    machine.python(renders="exit 2")
    machine.program("id", "echo 0")
    result = machine.run("sh", "scripts/install_rendering.sh", "python3")
    assert result.returncode == 2
    assert "package manager" in result.stderr
