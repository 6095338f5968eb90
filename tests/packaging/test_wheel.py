"""The wheel holds what the package needs and nothing else, and runs away from the repository."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from regrasp.envs.mujoco.backend import working_backend

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that the tree stays as it is."""
    tree = tmp_path_factory.mktemp("tree")
    for file in filter(Path.is_file, ROOT.iterdir()):
        shutil.copy(file, tree)
    shutil.copytree(ROOT / "src", tree / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copytree(ROOT / "tests" / "packaging", tree / "tests" / "packaging")
    output = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(output), str(tree)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    (built,) = output.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--target", str(target), str(wheel)]
    subprocess.run(command, check=True, capture_output=True)
    return target


def run_installed(installed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_wheel_holds_the_package_and_only_the_package(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    source = ROOT / "src"
    files = (path for path in (source / "regrasp").rglob("*") if path.is_file() and path.suffix != ".pyc")
    assert names == {path.relative_to(source).as_posix() for path in files}
    assert "regrasp/py.typed" in names
    assert "regrasp/configs/pick_cube_ppo_groot.yaml" in names
    assert any(name.startswith("regrasp/logging/templates/") and name.endswith(".html") for name in names)


def test_wheel_carries_license_and_command(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        (license_file,) = (name for name in archive.namelist() if name.endswith(".dist-info/licenses/LICENSE"))
        (entry_points,) = (name for name in archive.namelist() if name.endswith(".dist-info/entry_points.txt"))
        assert archive.read(license_file) == (ROOT / "LICENSE").read_bytes()
        assert b"regrasp = regrasp.cli.main:main" in archive.read(entry_points)


def test_installed_package_is_the_one_that_runs(installed: Path, tmp_path: Path):
    result = run_installed(installed, tmp_path, "-c", "import regrasp; print(regrasp.__file__)")
    assert Path(result.stdout.strip()) == installed / "regrasp" / "__init__.py"


def test_installed_doctor_runs_elsewhere(installed: Path, tmp_path: Path):
    result = run_installed(installed, tmp_path, "-m", "regrasp", "doctor")
    assert result.stderr == ""
    assert result.returncode == (0 if working_backend() else 2)
    assert "rendering" in result.stdout


@pytest.mark.full
def test_installed_package_finds_its_experiments(installed: Path, tmp_path: Path):
    result = run_installed(installed, tmp_path, "-m", "regrasp", "quickstart", "--dry_run")
    assert result.returncode == 0
    assert f"# {installed / 'regrasp' / 'configs' / 'pick_cube_sac_groot.yaml'}" in result.stdout


@pytest.mark.full
def test_installed_package_runs_every_stage(installed: Path, tmp_path: Path):
    experiment = ("--config_name", "pick_cube_ppo_mlp")
    small = ("env.train.total_num_envs=4", "env.train.num_workers=1", "env.eval.total_num_envs=4")
    stages = (
        ("collect", *experiment, "collect.num_demos=2"),
        ("sft", *experiment, "sft.steps=3"),
        ("train", *experiment, *small, "--model_path", "base", "--max_epochs", "1", "runner.force=true"),
        ("play", *experiment, *small, "--model_path", "base", "--num_episodes", "2"),
    )
    for stage in stages:
        result = run_installed(installed, tmp_path, "-m", "regrasp", *stage)
        assert result.returncode == 0, f"{stage[0]}: {result.stdout}{result.stderr}"
    results = list(tmp_path.glob("logs/regrasp/eval/*/evaluation.json"))
    assert [json.loads(file.read_text())["episodes"] for file in results] == [2]
