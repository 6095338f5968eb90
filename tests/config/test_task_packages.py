"""Tasks and experiments of installed packages, found in their sources."""

from __future__ import annotations

import sys
import venv
from pathlib import Path

import pytest

from regrasp.cli.main import main
from regrasp.envs.isaaclab.task_packages import experiment_of_task, package_folder, pythons_in, registered_tasks
from regrasp.experiment.load import load_config

SMALL = Path(__file__).parent / "small_experiment.yaml"
REGISTRATION = """
import gymnasium as gym
from . import agents

raise RuntimeError("must not be imported")

gym.register(
    id="My-Task-v0",
    entry_point="isaaclab.envs:ManagerBasedRLEnv",
    disable_env_checker=True,
    kwargs={
        "env_cfg_entry_point": f"{__name__}.task_cfg:Cfg",
        "regrasp_cfg_entry_point": f"{agents.__name__}:my_experiment.yaml",
    },
)
gym.register(id="My-Other-Task-v0", entry_point="x:Y", kwargs={"env_cfg_entry_point": "x:Z"})
gym.register(id=f"{prefix}-v0", entry_point="x:Y")
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The folder of packages with one, `my_tasks`, that registers tasks in a package below it."""
    below = tmp_path / "my_tasks" / "push"
    (below / "agents").mkdir(parents=True)
    (tmp_path / "my_tasks" / "__init__.py").write_text("raise RuntimeError('must not be imported')\n")
    (below / "__init__.py").write_text(REGISTRATION)
    (below / "broken.py").write_text("gym.register(\n")
    (below / "agents" / "my_experiment.yaml").write_text(SMALL.read_text())
    return tmp_path


def test_tasks_are_found_without_importing_them(package: Path) -> None:
    tasks = registered_tasks(package / "my_tasks")
    assert [task.id for task in tasks] == ["My-Other-Task-v0", "My-Task-v0"]
    assert tasks[0].experiment is None
    assert tasks[1].experiment == package / "my_tasks" / "push" / "agents" / "my_experiment.yaml"


@pytest.mark.parametrize(
    "entry", ["{folder}/my_tasks/push/agents/my_experiment.yaml", "my_tasks.push.agents:my_experiment.yaml"]
)
def test_an_experiment_is_named_by_path_or_module(package: Path, entry: str) -> None:
    entry = entry.format(folder=package)
    (package / "my_tasks" / "push" / "__init__.py").write_text(
        f'gym.register("My-Task-v0", kwargs={{"regrasp_cfg_entry_point": "{entry}"}})'
    )
    (task,) = registered_tasks(package / "my_tasks")
    assert task.experiment == package / "my_tasks" / "push" / "agents" / "my_experiment.yaml"


def test_a_task_brings_its_experiment(
    package: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(package))
    assert experiment_of_task("my_tasks:My-Other-Task-v0") is None
    assert experiment_of_task("My-Task-v0") is None
    says = [f"env.{name}.mapping.task_description=push" for name in ("train", "eval")]
    assert main(["train", "--dry_run", "--task", "my_tasks:My-Task-v0", *says]) == 0
    printed = capsys.readouterr().out
    assert "my_experiment.yaml" in printed
    assert "id: my_tasks:My-Task-v0" in printed
    assert main(["train", "--list_tasks", "--task", "my_tasks:My-Task-v0"]) == 0
    rows = {row.split()[0]: row for row in capsys.readouterr().out.splitlines()}
    assert "my_experiment.yaml" in rows["my_tasks:My-Task-v0"]
    assert str(package / "my_tasks") in rows["my_tasks:My-Other-Task-v0"]


@pytest.mark.parametrize(
    "entry", ["'my_tasks.push.agents:nowhere.yaml'", "'elsewhere:file.yaml'", "os.path.join(HERE, 'file.yaml')"]
)
def test_an_experiment_that_cannot_be_found_is_told(
    package: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], entry: str
) -> None:
    source = package / "my_tasks" / "push" / "__init__.py"
    source.write_text(f'gym.register("My-Task-v0", kwargs={{"regrasp_cfg_entry_point": {entry}}})')
    monkeypatch.syspath_prepend(str(package))
    assert main(["train", "--dry_run", "--task", "my_tasks:My-Task-v0"]) == 2
    error = capsys.readouterr().err
    assert "cannot be found" in error
    assert str(source) in error
    assert entry.strip("'") in error
    assert main(["train", "--list_tasks", "--task", "my_tasks:My-Task-v0"]) == 0
    assert f"my_tasks:My-Task-v0 names an experiment that cannot be found: {entry.strip(chr(39))}" in (
        capsys.readouterr().err
    )


def test_a_task_of_isaac_lab_does_not_run_with_another_robots_experiment(
    package: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(package))
    for task in ("my_tasks:My-Other-Task-v0", "Isaac-Unheard-Of-v0"):
        assert main(["train", "--dry_run", "--task", task]) == 2
        assert "--config_name" in capsys.readouterr().err
    assert main(["train", "--dry_run", "--task", "Isaac-Stack-Cube-Franka-IK-Rel-Visuomotor-v0"]) == 0
    assert "experiment_name: isaaclab_stack_cube_ppo_groot" in capsys.readouterr().out


def test_a_list_of_tasks_says_where_none_were_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--list_tasks", "--task", "no_such_package:Task-v0", "env.isaaclab.python=/no/python"]) == 0
    printed = capsys.readouterr()
    assert "/no/python cannot be started" in printed.err
    assert "no package no_such_package was found" in printed.err
    assert "Regrasp-Pick-Cube-v0" in printed.out


def test_the_simulators_own_python_is_searched_too(package: Path) -> None:
    (package / "my_tasks").rename(package / "isaaclab_tasks")
    venv.create(package / "lab", symlinks=True)
    python = package / "lab" / "bin" / "python"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (package / "lab" / "lib" / version / "site-packages" / "lab.pth").write_text(str(package))
    assert package_folder("isaaclab_tasks") is None
    assert package_folder("isaaclab_tasks", str(python)) == package / "isaaclab_tasks"
    types = ["env.train.env_type=isaaclab", "env.eval.env_type=isaaclab"]
    loaded = load_config("my_experiment", [f"+env.isaaclab.python={python}", *types])
    assert loaded.file == package / "isaaclab_tasks" / "push" / "agents" / "my_experiment.yaml"
    assert (loaded.config.env.train.python, loaded.config.env.eval.python) == (str(python), str(python))
    assert package_folder("isaaclab_tasks", str(package / "no_such_python")) is None


def test_overrides_name_the_simulators_python() -> None:
    assert pythons_in(["+env.train.python=/a", "env.eval.python='/b'", "actor.seed=1", "env.isaaclab.python=/a"]) == (
        "/a",
        "/b",
    )
