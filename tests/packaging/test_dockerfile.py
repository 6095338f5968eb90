"""The image's recipe, as far as it can be checked without building it: what it names is there, and its scripts run."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

from regrasp.envs.mujoco.backend import PACKAGES

ROOT = Path(__file__).parents[2]
LINES = re.sub(r"\\\n", "", (ROOT / "Dockerfile").read_text()).splitlines()


def instructions(name: str) -> list[str]:
    """What follows an instruction, by their order; a line that is continued is one."""
    return [line.removeprefix(name).strip() for line in LINES if line.startswith(f"{name} ")]


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a file of the top out of the context: the last pattern that fits decides."""
    kept = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.strip()
        if pattern and not pattern.startswith("#") and fnmatch(path, pattern.lstrip("!")):
            kept = pattern.startswith("!")
    return not kept


def test_what_is_copied_is_there_and_in_the_context() -> None:
    sources = [word for line in instructions("COPY") if "--from" not in line for word in line.split()[:-1]]
    assert {"src", "pyproject.toml", "constraints.txt"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists(), source
        assert not ignored(source), source
    assert ignored(".venv")
    assert ignored("tests")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {project["readme"], *project["license-files"]} <= set(sources), "the package is built from these too"


def test_it_installs_what_the_package_has_and_needs() -> None:
    script = " ".join(instructions("RUN"))
    assert re.findall(r"--no-install-recommends ([\w .-]+?) +&&", script) == [" ".join(PACKAGES)]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (extras,) = re.findall(r'"\.\[([\w,]+)\]"', script)
    assert set(extras.split(",")) <= project["optional-dependencies"].keys()
    minimum = tuple(map(int, project["requires-python"].removeprefix(">=").split(".")))
    assert tuple(map(int, instructions("ARG")[0].removeprefix("PYTHON=").split("."))) >= minimum
    assert instructions("ENTRYPOINT") == ['["regrasp"]']
    assert instructions("USER") == ["1000"], "not root"


@pytest.mark.parametrize(
    ("torch", "index", "has_cpu", "tried"),
    [
        ("cpu", "", True, ["torch=={}+cpu"]),
        ("cpu", "", False, ["torch=={}+cpu", "torch=={}"]),
        ("cpu", "https://index", True, ["--index-url https://index torch=={}+cpu"]),
        ("cuda", "", True, ["torch=={}"]),
        ("rocm", "", True, None),
    ],
)
def test_the_build_of_torch(torch: str, index: str, has_cpu: bool, tried: list[str] | None, tmp_path: Path) -> None:
    script = next(line for line in instructions("RUN") if "torch()" in line)
    pip = tmp_path / "pip"
    failure = "" if has_cpu else 'case "$*" in *+cpu) exit 1;; esac'
    pip.write_text(f'#!/bin/sh\necho "$*" >>"{tmp_path}/tried"\n{failure}\n')
    pip.chmod(0o755)
    told = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "TORCH": torch, "TORCH_INDEX": index}
    done = subprocess.run(["sh", "-c", script], cwd=ROOT, env=told, capture_output=True, text=True)
    if tried is None:
        assert (done.returncode, done.stderr) == (2, "TORCH is rocm: cpu or cuda\n")
        return
    assert done.returncode == 0, done.stderr
    (version,) = re.findall(r"^torch==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    lines = (tmp_path / "tried").read_text().splitlines()
    assert lines == [f"install --no-deps {one.format(version)}" for one in tried]


@pytest.mark.parametrize("script", instructions("RUN"))
def test_scripts_are_of_the_shell(script: str) -> None:
    subprocess.run(["sh", "-n", "-c", script], check=True)
