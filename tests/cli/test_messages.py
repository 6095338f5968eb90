"""What users read when something is wrong, word by word, so that a change of words shows as a difference.

`REGRASP_WRITE_GOLDEN=1 pytest tests/cli/test_messages.py` writes the file anew.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest

import regrasp
from regrasp.cli.main import main
from regrasp.errors import UserError
from regrasp.models.mlp.policy import MlpPolicy
from regrasp.models.origin import Origin

GOLDEN = Path(__file__).parents[1] / "golden" / "messages.txt"
MLP = "--config_name pick_cube_ppo_mlp"
LAB = "--config_name isaaclab_stack_cube_ppo_groot"
COMMANDS = {
    "typo in a key": "train --dry_run algorithm.update_epochs=2",
    "key of another block": "train --dry_run actor.gamma=0.9",
    "key that nothing is like": "train --dry_run actor.xyzzy=1",
    "typo in a value": "train --dry_run actor.model.precision=bf61",
    "value out of range": "train --dry_run algorithm.gamma=2",
    "value of another kind": "train --dry_run runner.max_epochs=many",
    "flag out of range": "train --dry_run --num_envs 0",
    "two mistakes": "train --dry_run runner.max_epoch=3 actor.optim.lr=-1",
    "override without a value": "train actor.optim.lr 1e-5",
    "override that cannot be read": "train actor.optim.lr=[1",
    "override of several values": "train actor.optim.lr=1,2",
    "typo in a flag": "train --num_env 4",
    "flag that is a key": "train --lr 1e-5",
    "typo in a command": "trian",
    "typo in an experiment": "train --config_name pick_cub",
    "file that is not there": "train --config_name my_task.yaml",
    "file by an experiment's name": "train --config_name pick_cube_ppo_groot.yml",
    "broken file": "train --config_name broken.yaml",
    "folder of configurations that is not there": "train --config_path nowhere",
    "typo in a task": "train --dry_run --task Regrasp-Pick-Cubee-v0",
    "task of another robot": "train --dry_run --task Isaac-Nothing-v0",
    "typo in a simulator": "train --dry_run env.train.env_type=mujocoo",
    "simulator of RLinf": "train --dry_run env.train.env_type=libero",
    "model of RLinf": "train --dry_run actor.model.model_type=openpi",
    "algorithm of RLinf": "train --dry_run algorithm.adv_type=embodied_dagger",
    "key of another simulator": "train --dry_run +env.train.init_params.device=cuda:1",
    "camera that is not there": "train --dry_run env.train.mapping.main_images=front",
    "slice past the end": "train --dry_run env.train.mapping.states=[{key:policy/gripper_position,slice:[0,9]}]",
    "action of another width": "train --dry_run actor.model.action_dim=5",
    "not divisible": "train --dry_run actor.micro_batch_size=100",
    "contradiction": "train --dry_run env.train.init_params.max_episode_steps=9",
    "rollout longer than an episode": "train --dry_run env.train.max_steps_per_rollout_epoch=48",
    "groups that do not divide": "train --dry_run --config_name pick_cube_grpo_groot --num_envs 3",
    "not a placement": "train --dry_run cluster.component_placement={actor:all}",
    "package that is not installed": "train --dry_run --logger wandb",
    "no model": "train",
    "model that is not there": "train --model_path nowhere",
    "model that is not there, dry": f"train --dry_run {MLP} --model_path nowhere",
    "published model that is not there": f"train --dry_run {LAB} --model_path nowhere",
    "file for a folder": "train --model_path broken.yaml",
    "folder without a model": "train --model_path empty",
    "model of another kind": "train --model_path base",
    "model inside a folder": f"play {MLP} --model_path run",
    "damaged model": f"play {MLP} --model_path damaged",
    "model of another state": f"train --dry_run {MLP} --model_path narrow",
    "model of another task": f"play {MLP} --model_path base --dry_run",
    "model that would not act": "play --policy expert --model_path base",
    "evaluation that goes on": f"train --only_eval {MLP} --model_path base --resume_dir run",
    "training with weights over its model": f"train --dry_run {MLP} --model_path base runner.ckpt_path=run",
    "checkpoint that is not there": f"train {MLP} --resume_dir nowhere",
    "no checkpoint in a folder": f"train {MLP} --resume_dir empty",
    "weights that are not there": f"play {MLP} --model_path base --rl_model_path nowhere",
    "no demonstrations": "sft",
    "no dataset in a folder": "sft --data empty --output new",
    "no stage": "sft sft=null",
    "output that is taken": "collect --output run",
    "no such script": "collect --policy no_such_module:act",
    "no expert": f"collect {LAB}",
    "no recording": f"convert {LAB}",
    "recording that is not there": f"convert no/such.hdf5 {LAB}",
    "task of pretraining": "pretrain --dry_run pretrain.tasks=[Regrasp-Pick-Cub-v0]",
    "stages that are not there": f"quickstart {MLP}",
    "damaged journal": "quickstart --output started",
    "nothing to report": "report empty",
    "flags without effect": f"train --dry_run --only_eval --max_epochs 3 --force {MLP} --model_path base",
    "flags of a listing": "train --list_tasks --config_name nonsense",
    "batch larger than an update": "train --dry_run --num_envs 2",
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with what is wrong in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setitem(sys.modules, "wandb", None)
    for name in ("empty", "started"):
        (tmp_path / name).mkdir()
    Path("broken.yaml").write_text("env:\n  train: [1\n")
    inside = "run/small/checkpoints/global_step_2/model"
    for name, state_dim in (("base", 16), ("damaged", 16), ("narrow", 5), (inside, 16)):
        MlpPolicy(state_dim=state_dim, action_dim=4, num_action_chunks=4, hidden=(4,)).save(tmp_path / name)
    Origin(("Regrasp-Stack-Cube-v0",), ("stack them",)).save(tmp_path / "base")
    config = json.loads(Path("damaged/config.json").read_text())
    Path("damaged/config.json").write_text(json.dumps(config | {"hidden": 0.5}))
    return tmp_path


def test_messages_are_those_of_the_golden_file(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    assert main(["quickstart", "--dry_run"]) == 0
    Path("started/config.yaml").write_text(capsys.readouterr().out.partition("\n# Summary")[0][:-1])
    Path("started/stages.json").write_text('{"pretrain": {"seconds": 1.0, "cpu_seconds": 1.0, "result": {}}}')
    for kind, command in COMMANDS.items():
        try:
            code = main(command.split())
        except SystemExit as end:
            code = end.code
        texts.append(f"## {kind}\n$ regrasp {command}\n{_shown(capsys.readouterr().err, place)}\n[{code}]\n")
    for folder in ("empty", "run"):
        with pytest.raises(UserError) as caught:
            regrasp.load_policy(folder)
        texts.append(f'## load_policy("{folder}")\n{_shown(str(caught.value), place)}\n')
    text = "\n".join(texts)
    if os.environ.get("REGRASP_WRITE_GOLDEN"):
        GOLDEN.write_text(text, encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8")


def _shown(text: str, place: Path) -> str:
    """A message without what differs between machines, and without the usage that argparse prints above it."""
    package = Path(regrasp.__file__).parent
    for path, name in ((place.resolve(), "<here>"), (package, "<regrasp>"), (Path(sys.executable), "<python>")):
        text = text.replace(str(path), name)
    text = re.sub(r"\A(usage: .*\n(?: .*\n)*)", "", text)
    return re.sub(r"\d+(\.\d+)? [MG]iB", "<size>", text).strip("\n")
