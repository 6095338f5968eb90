"""`--task`: the task's simulator and its variant for evaluation, whichever simulator the YAML file is for."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path
from textwrap import dedent

import pytest
import yaml

from regrasp.cli.main import main
from regrasp.envs import registry
from regrasp.experiment.load import load_config

REFERENCE = Path(__file__).parents[1] / "config" / "reference_experiment.yaml"
TROCAR = "Regrasp-Assemble-Trocar-G129-Dex3-v0"
TROCAR_EVAL = "Regrasp-Assemble-Trocar-G129-Dex3-Eval-v0"
LAB = "Isaac-Stack-Cube-Franka-IK-Rel-Visuomotor-v0"


def dry_run(capsys: pytest.CaptureFixture[str], *arguments: str, command: str = "train") -> tuple[dict, str]:
    """The environments that a command would use, and its warnings."""
    assert main([command, "--dry_run", *arguments]) == 0
    printed = capsys.readouterr()
    return yaml.safe_load(printed.out)["env"], printed.err


def tasks(envs: dict) -> list[tuple[str, str]]:
    return [(envs[name]["env_type"], envs[name]["init_params"]["id"]) for name in ("train", "eval")]


@pytest.mark.parametrize("command", ["train", "play"])
def test_the_references_experiment_runs_on_the_embedded_twin(capsys: pytest.CaptureFixture[str], command: str) -> None:
    envs, warnings = dry_run(capsys, "--config_name", str(REFERENCE), "--task", TROCAR, command=command)
    assert tasks(envs) == [("mujoco", TROCAR), ("mujoco", TROCAR_EVAL)]
    written = yaml.safe_load(REFERENCE.read_text())["env"]["train"]["isaaclab"]
    for name in ("train", "eval"):
        mapping = envs[name]["mapping"]
        for key in ("task_description", "main_images", "extra_view_images", "embodiment_tag_id", "data_config_class"):
            assert mapping[key] == written[key]
        assert [entry["slice"] for entry in mapping["states"]] == [[15, 29], None]
        assert mapping["action_mapping"]["prefix_pad"] == 15
    assert warnings.count("[WARN]") == 2
    assert "The folder does not exist.\n" in warnings
    assert "'/mnt/ckpt/base/'" in warnings


@pytest.mark.parametrize(
    ("override", "key", "complaint"),
    [
        ("env.train.isaaclab.main_images=fornt_camera", "train.isaaclab.main_images", "camera_images/front_camera"),
        ("env.train.isaaclab.action_mapping.prefix_pad=14", "train.isaaclab.action_mapping", "43 in total"),
        ("env.eval.isaaclab.states=[{key: robot_joint_state, slice: [80, 88]}]", "eval.isaaclab.states", "stop <= 87"),
    ],
)
def test_its_mapping_is_checked_against_the_twin(
    capsys: pytest.CaptureFixture[str], override: str, key: str, complaint: str
) -> None:
    for flags in ([], ["--dry_run"]):
        assert main(["train", "--config_name", str(REFERENCE), "--task", TROCAR, *flags, override]) == 2
        error = capsys.readouterr().err
        assert complaint in error
        assert f"key:      env.{key}" in error


def test_what_only_isaac_lab_has_is_left_out_with_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--config_name", str(REFERENCE), "--task", TROCAR]
    plain, _ = dry_run(capsys, *arguments)
    lab = ["env.isaaclab.python=/opt/lab/python", "env.isaaclab.device=cuda:1"]
    terms = "env.train.isaaclab.call_zero_weight_terms=[update_stage]"
    envs, warnings = dry_run(capsys, *arguments, *lab, terms)
    assert envs == plain
    assert "env.isaaclab has no effect" in warnings
    assert "without effect there: env.train.mapping.call_zero_weight_terms." in warnings


def test_an_experiment_of_the_embedded_simulator_can_be_pointed_at_isaac_lab(
    capsys: pytest.CaptureFixture[str],
) -> None:
    python = "env.isaaclab.python=/opt/lab/python"
    says = [f"+env.{name}.mapping.task_description=stack them" for name in ("train", "eval")]
    envs, _ = dry_run(capsys, "--config_name", "pick_cube_ppo_mlp", "--task", LAB, python, *says)
    assert tasks(envs) == [("isaaclab", LAB)] * 2
    assert [envs[name]["python"] for name in ("train", "eval")] == ["/opt/lab/python"] * 2
    envs, _ = dry_run(capsys, "--config_name", "pick_cube_ppo_mlp", "--task", "my_package:My-Task-v0", *says)
    assert tasks(envs) == [("isaaclab", "my_package:My-Task-v0")] * 2


def test_the_users_own_overrides_win(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("my_simulator", "builtins:print", "regrasp.envs")
    monkeypatch.setattr(registry, "entry_points", lambda *, group: [point])
    arguments = ["--config_name", str(REFERENCE), "--task", TROCAR]
    envs, _ = dry_run(capsys, *arguments, f"env.eval.init_params.id={TROCAR}")
    assert tasks(envs) == [("mujoco", TROCAR)] * 2
    envs, _ = dry_run(capsys, *arguments, "env.train.env_type=my_simulator", "env.eval.env_type=my_simulator")
    assert [env_type for env_type, _ in tasks(envs)] == ["my_simulator"] * 2


@pytest.mark.parametrize(
    ("task", "evaluation"),
    [
        (TROCAR_EVAL, TROCAR_EVAL),
        ("Isaac-Assemble-Trocar-G129-Dex3-v0", "Isaac-Assemble-Trocar-G129-Dex3-Eval-v0"),
        ("IsaacContrib-Assemble-Trocar-G129-Dex3", "IsaacContrib-Assemble-Trocar-G129-Dex3-Eval"),
        ("mine:Isaac-Assemble-Trocar-G129-Dex3-v0", "mine:Isaac-Assemble-Trocar-G129-Dex3-Eval-v0"),
        (LAB, LAB),
    ],
)
def test_an_evaluation_uses_the_tasks_own_variant(
    capsys: pytest.CaptureFixture[str], task: str, evaluation: str
) -> None:
    envs, _ = dry_run(capsys, "--config_name", str(REFERENCE), "--task", task)
    assert [task_id for _, task_id in tasks(envs)] == [task, evaluation]


def test_a_block_for_isaac_lab_does_not_reach_the_embedded_simulator() -> None:
    loaded = load_config("pick_cube_ppo_mlp", ["+env.isaaclab.python=/opt/lab/python"])
    assert loaded.config == load_config("pick_cube_ppo_mlp").config
    assert any("env.isaaclab has no effect" in warning for warning in loaded.warnings)


@pytest.mark.parametrize(
    ("task", "evaluates", "experiment"),
    [
        ("Isaac-Assemble-Trocar-G129-Dex3-v0", "Isaac-Assemble-Trocar-G129-Dex3-Eval-v0", "assemble_trocar"),
        ("Isaac-Assemble-Trocar-G129-Dex3-Eval-v0", "Isaac-Assemble-Trocar-G129-Dex3-Eval-v0", "assemble_trocar"),
        ("IsaacContrib-Assemble-Trocar-G129-Dex3", "IsaacContrib-Assemble-Trocar-G129-Dex3-Eval", "assemble_trocar"),
        ("IsaacContrib-Assemble-Trocar-G129-Dex3-Eval", "IsaacContrib-Assemble-Trocar-G129-Dex3-Eval", "trocar"),
        ("IsaacContrib-Stack-Cube-Franka-IK-Rel-Visuomotor",) * 2 + ("stack_cube",),
    ],
)
def test_every_spelling_of_a_task_finds_its_experiment(
    task: str, evaluates: str, experiment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    envs, _ = dry_run(capsys, "--task", task)
    assert tasks(envs) == [("isaaclab", task), ("isaaclab", evaluates)]
    assert main(["train", "--dry_run", "--task", task]) == 0
    assert experiment in capsys.readouterr().out


def test_an_experiment_of_another_task_says_whose_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    source = """
        from regrasp.envs.mujoco.tasks.stack_cube import StackCube

        class Mine(StackCube):
            def __init__(self):
                super().__init__()
                self.vectors = {"elbow": 1}
    """
    (tmp_path / "tasks_of_mine.py").write_text(dedent(source))
    advice = "the experiment {} is written for Regrasp-Pick-Cube-v0: copy it, give the mappings"
    for named in ("pick_cube_sac_groot", "pick_cube_ppo_mlp"):
        chosen = [] if named == "pick_cube_sac_groot" else ["--config_name", named]
        assert main(["train", "--task", "tasks_of_mine:Mine", *chosen, "--dry_run"]) == 2
        error = capsys.readouterr().err
        assert advice.format(named).casefold() in error.casefold()
        assert "what tasks_of_mine:Mine offers, and name the copy with --config_name" in error
    wrong = "env.train.mapping.states=[policy/elbw]"
    assert main(["train", "--task", "tasks_of_mine:Mine", "--dry_run", wrong]) == 2
    assert "is written for" not in capsys.readouterr().err  # the user's own value is the mistake
