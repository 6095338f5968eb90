"""MuJoCo tasks that are no part of Regrasp: the tutorial's, as a package and as a file, and what is none."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from outside_packages import code_blocks, install, make_importable
from regrasp.cli.main import main
from regrasp.data.lerobot import DemonstrationDataset
from regrasp.envs.mujoco import catalog
from regrasp.envs.mujoco.scenes import render_scenes
from regrasp.envs.mujoco.simulator import create_task
from regrasp.envs.process.simulator import ArraySpec, SimulatorSpec
from regrasp.envs.registry import EnvTypes, preflight, same_task
from regrasp.errors import UserError
from regrasp.experiment import CollectConfig
from regrasp.experiment.load import load_config
from regrasp.stages.collect import noise_scales
from regrasp.stages.pretrain import check_instructions

MODULE, *_ = code_blocks("tasks.md", "task tutorial", "python")
EXPERIMENT, *_ = code_blocks("tasks.md", "task tutorial", "yaml")
PROJECT, *_ = code_blocks("tasks.md", "task tutorial", "toml")
NAMED, PLACE = "My-Reach-Ball-v0", "my_tasks:ReachBall"
SMALL = (
    "runner.logger.logger_backends=[]",
    "runner.max_epochs=2",
    "env.train.total_num_envs=8",
    "env.train.num_workers=1",
    "env.eval.total_num_envs=8",
    "env.eval.num_workers=1",
    "env.eval.num_episodes=8",
    "actor.global_batch_size=40",
    "actor.micro_batch_size=40",
    "sft.steps=3",
)


@pytest.fixture
def experiment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tutorial's experiment, in the working folder."""
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "reach_ball_ppo_mlp.yaml"
    file.write_text(EXPERIMENT)
    return file


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tutorial's task as an installed package."""
    install(tmp_path / "site", {"my_tasks": MODULE}, PROJECT, monkeypatch)
    return tmp_path / "site"


def evaluation(folder: Path) -> dict:
    (file,) = folder.glob("logs/regrasp/eval/*/evaluation.json")
    return json.loads(file.read_text())


def test_a_file_beside_the_experiment_is_a_task_for_every_stage(
    experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_importable(tmp_path, ["my_tasks"], monkeypatch)
    (tmp_path / "my_tasks.py").write_text(MODULE)
    chosen = ["--config_name", experiment.name, *SMALL]
    assert main(["play", *chosen, "--policy", "expert"]) == 0
    assert evaluation(tmp_path)["success"] == 1.0
    assert main(["collect", *chosen, "--num_demos", "3", "collect.action_noise=[0.5,0,0]"]) == 0
    assert DemonstrationDataset(tmp_path / "demos").num_episodes == 3
    assert main(["sft", *chosen, "sft.validation_fraction=0"]) == 0
    assert main(["train", *chosen, "--model_path", "base"]) == 0
    (run,) = tmp_path.glob("logs/regrasp/2*")
    assert run.name.endswith("-my_tasks.ReachBall")
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.full
def test_a_package_gives_its_task_a_name(
    installed: Path, experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tasks"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith(NAMED)]
    assert line.split() == [*f"{NAMED} mujoco runs here (no experiment) from my-tasks 0.1.0, {PLACE}".split()]
    assert EnvTypes().of_task(NAMED) == EnvTypes().of_task(PLACE) == "mujoco"
    assert same_task(NAMED, PLACE)
    assert not same_task(NAMED, "Regrasp-Pick-Cube-v0")
    assert create_task(NAMED).task_id == NAMED
    scenes = render_scenes(NAMED, 3, seed=0)
    assert scenes.instructions == ("reach the red ball", "reach the blue ball")
    assert main(["play", "--config_name", experiment.name, "--task", NAMED, "--policy", "zero", *SMALL]) == 0
    assert evaluation(tmp_path)["success"] == 0.0


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("def observe(self, data, episode): return {}", "Odd.observe does not give 'pointer_position'"),
        (
            "def outcome(self, *given): return replace(super().outcome(*given), info={'dist': 1.0})",
            "Odd.outcome gives 'dist'",
        ),
    ],
)
def test_names_that_a_task_does_not_declare_are_told(
    method: str,
    message: str,
    experiment: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_importable(tmp_path, ["my_tasks", "odd_tasks"], monkeypatch)
    (tmp_path / "my_tasks.py").write_text(MODULE)
    lines = (
        "from dataclasses import replace",
        "from my_tasks import ReachBall",
        "class Odd(ReachBall):",
        f"    {method}",
    )
    (tmp_path / "odd_tasks.py").write_text("\n".join(lines))
    odd = "env.eval.init_params.id=odd_tasks:Odd"
    assert main(["play", "--config_name", experiment.name, "--policy", "zero", odd, *SMALL]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_a_class_that_is_named_with_a_dot_is_recognised() -> None:
    with pytest.raises(UserError) as caught:
        catalog.find_task("my_tasks.ReachBall", "env.train.init_params.id")
    assert caught.value.fix == f"did you mean '{PLACE}'?"


@pytest.mark.full
@pytest.mark.usefixtures("installed")
def test_the_quickstart_takes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    states = "states=[policy/pointer_position]"
    grounding = ("num_scenes=40", "steps=3", "batch_size=16", "max_median_error_cm=1000")
    sizes = ("vision_width=24", "vision_mlp=48", "language_width=24", "language_head_dim=8", "head_width=24")
    settings = [
        *(f"pretrain.{name}" for name in (*grounding, f"tasks=[{NAMED}]")),
        *(f"pretrain.architecture.{name}" for name in (*sizes, "language_mlp=48", "head_layers=2")),
        *(f"env.{name}.mapping.{states}" for name in ("train", "eval")),
        *("env.train.max_episode_steps=20", "env.train.max_steps_per_rollout_epoch=20"),
        *("actor.model.action_dim=3", "collect.num_demos=4", "sft.batch_size=16", "runner.save_interval=2"),
    ]
    monkeypatch.setattr("regrasp.stages.pretrain.default_cache", lambda: tmp_path / "cache")
    command = ["quickstart", "--config_name", "pick_cube_ppo_groot", "--task", NAMED, "--output", "out"]
    assert main([*command, *SMALL, *settings]) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["task"] == NAMED
    assert set(summary["base"]["per_instruction"]) <= {"reach the red ball", "reach the blue ball"}


BROKEN = {
    "raises": "raise OSError('no such robot')",
    "imports": "import a_package_that_is_nowhere",
    "syntax": "class ReachBall(:",
    "another": "class ReachBall: ...",
    "no_class": "ReachBall = 3",
    "unfinished": "from regrasp.envs.mujoco.task import Task\nclass ReachBall(Task):\n  def reset(self): ...",
    "fails": MODULE.replace("from_xml_string(_MODEL)", "from_xml_string('<mujoco><nothing/></mujoco>')"),
    "silent": MODULE.replace("    action_dim = 3\n", ""),
    "blind": MODULE.replace('video_camera = "front_camera"', 'video_camera = "back_camera"'),
    "gripper": MODULE.replace("    action_dim = 3\n", "    action_dim = 3\n    grippers = (3,)\n"),
}


@pytest.mark.parametrize(
    ("module", "task", "words"),
    [
        ("", "nothing_here:ReachBall", ("There is no module 'nothing_here'",)),
        ("raises", PLACE, ("my_tasks cannot be imported: OSError: no such robot", "my_tasks.py, line 1")),
        ("imports", PLACE, ("my_tasks cannot be imported: ModuleNotFoundError", "a_package_that_is_nowhere")),
        ("syntax", PLACE, ("my_tasks cannot be imported: SyntaxError", "line 1")),
        ("another", PLACE, ("a class of another kind", "extends regrasp.envs.mujoco.task.Task")),
        ("no_class", PLACE, ("is no class",)),
        ("another", "my_tasks:ReachBal", ("has no 'ReachBal'", "did you mean my_tasks:ReachBall")),
        ("unfinished", PLACE, ("unfinished task", "actuate, observe, outcome")),
        ("fails", PLACE, ("cannot be created: ValueError", "nothing")),
        ("silent", PLACE, ("does not say its action_dim",)),
        ("blind", PLACE, ("no camera 'back_camera'; it has front_camera",)),
        ("gripper", PLACE, ("grippers", "numbers from 0 to 2")),
        ("another", "my_tasks.ReachBall", ("Unknown MuJoCo task", "my_package.my_module:MyTask")),
    ],
)
def test_what_is_no_task_is_told_in_a_sentence(
    module: str,
    task: str,
    words: Sequence[str],
    experiment: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_importable(tmp_path, ["my_tasks"], monkeypatch)
    (tmp_path / "my_tasks.py").write_text(BROKEN.get(module, ""))
    for flags in ([], ["--dry_run"]):
        assert main(["play", "--config_name", experiment.name, "--task", task, "--policy", "zero", *flags, *SMALL]) == 2
        error = capsys.readouterr().err
        assert "Traceback" not in error
        for word in words:
            assert word in error


def test_a_broken_package_is_listed_as_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install(tmp_path / "site", {"my_tasks": "import nowhere_at_all"}, PROJECT, monkeypatch)
    assert main(["tasks"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith(NAMED)]
    assert "my_tasks cannot be imported: ModuleNotFoundError: No module named 'nowhere_at_all'" in line


@pytest.mark.usefixtures("installed")
def test_a_name_that_two_packages_give_is_ambiguous(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = PROJECT.replace("my-tasks", "their-tasks").replace('py-modules = ["my_tasks"]', 'py-modules = ["theirs"]')
    install(tmp_path / "other", {"theirs": MODULE}, other.replace("my_tasks:", "theirs:"), monkeypatch)
    with pytest.raises(UserError, match="Several tasks are called") as caught:
        catalog.find_task(NAMED, "env.train.init_params.id")
    assert caught.value.expected is not None
    assert "my_tasks:ReachBall (my-tasks 0.1.0)" in caught.value.expected


@pytest.mark.usefixtures("installed")
def test_a_task_without_scenes_cannot_be_pretrained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = MODULE.index("    def scatter")
    module = MODULE[:start] + MODULE[MODULE.index("    def _goal") :]
    make_importable(tmp_path, ["plain_task"], monkeypatch)
    (tmp_path / "plain_task.py").write_text(module)
    with pytest.raises(UserError, match="arranges no scenes") as caught:
        check_instructions(load_config("pick_cube_ppo_groot", ["pretrain.tasks=[plain_task:ReachBall]"]).config)
    assert caught.value.key == "pretrain.tasks"
    with pytest.raises(UserError, match="Unknown MuJoCo task"):
        check_instructions(load_config("pick_cube_ppo_groot", ["pretrain.tasks=[My-Reach-Bal-v0]"]).config)


def spec(action_dim: int, grippers: tuple[int, ...] = ()) -> SimulatorSpec:
    raw = {"policy/x": ArraySpec((1,), "float32")}
    return SimulatorSpec("T", raw, action_dim, ("",), 0.1, 9, grippers=grippers)


def test_noise_is_for_every_action_but_the_grippers_or_as_the_list_says() -> None:
    one = CollectConfig(num_demos=1, action_noise=0.2)
    assert np.array_equal(noise_scales(one, spec(4, (3,))), [0.2, 0.2, 0.2, 0.0])
    assert np.array_equal(noise_scales(one, spec(4, (0, 2))), [0.0, 0.2, 0.0, 0.2])
    assert np.array_equal(noise_scales(one, spec(1)), [0.2])
    each = CollectConfig(num_demos=1, action_noise=(0.1, 0.0, 0.3))
    assert np.array_equal(noise_scales(each, spec(3, (2,))), [0.1, 0.0, 0.3])
    with pytest.raises(UserError, match="Noise for 3 actions; T has 4") as caught:
        noise_scales(each, spec(4))
    assert caught.value.key == "collect.action_noise"


def test_the_cube_tasks_say_which_dimension_is_their_gripper() -> None:
    env = load_config("pick_cube_ppo_mlp").config.env.train
    described = preflight(env, "train", 4)
    assert described is not None
    assert described.grippers == (3,)
    for value in ("-0.1", "[0.1,-0.1]", "[]", "much"):
        with pytest.raises(UserError) as caught:
            load_config("pick_cube_ppo_mlp", [f"collect.action_noise={value}"])
        assert "a number of at least 0, or a list of such" in str(caught.value)
