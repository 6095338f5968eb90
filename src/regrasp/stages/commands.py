"""The stages before RL as commands see them: defaults from the configuration, one folder in, one folder out."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from regrasp.engine.acting import create_chooser
from regrasp.envs.mapping import ActionMapping
from regrasp.envs.registry import check_expert, create_env
from regrasp.errors import UserError
from regrasp.experiment import ExperimentConfig
from regrasp.experiment.paths import DOWNLOAD_BACKBONE, PUBLISHED_BACKBONE
from regrasp.folders import require_output
from regrasp.rollout.choosers import load_script
from regrasp.stages.collect import Demonstrator, collect
from regrasp.stages.pretrain import cached_backbone, check_instructions, pretrain
from regrasp.stages.sft import SftResult, train_base_model


def pretrain_backbone(
    config: ExperimentConfig, output: Path | None = None, *, again: bool = False
) -> tuple[Path, float | None]:
    """Pretrain into `output` (default: the user's cache), unless it was done before.

    Returns:
        The folder, and the median grounding error in centimetres, None where nothing had to be done.

    Raises:
        UserError: The folder cannot be written, or an instruction is too long for the network.
    """
    assert config.pretrain is not None
    check_instructions(config)
    folder = output or cached_backbone(config.pretrain)
    if (folder / "config.json").is_file() and not again:
        return folder, None
    require_output(folder, replaces="config.json", overwrite=True, key="--output")
    return folder, pretrain(config.pretrain, folder)


def collect_demonstrations(
    config: ExperimentConfig, output: Path | None = None, policy: str = "expert"
) -> tuple[Path, int]:
    """Record a dataset into `output` (default: `collect.output_dir`).

    Args:
        config: The experiment.
        output: The folder.
        policy: What acts: `expert`, the task's own; `model`, the policy of `actor.model.model_path`; or
            `module:function`, see `script_chooser`.

    Returns:
        The folder and the number of attempts.
    """
    assert config.collect is not None
    folder = output or Path(config.collect.output_dir)
    if policy == "expert":
        check_expert(config.env.train, "train")
    elif policy != "model":
        load_script(policy)
    seed = config.seed if config.collect.seed is None else config.collect.seed
    num_envs = min(config.env.train.total_num_envs, config.collect.num_demos)
    train = dataclasses.replace(config.env.train, total_num_envs=num_envs)
    env = create_env(train, "train", 1, config.seed)
    try:
        mapping = ActionMapping(train.mapping, config.actor.model.action_dim, env.spec.action_dim, "env.train.mapping")
        name = {"expert": "expert", "model": "policy"}.get(policy, f"script {policy}")
        choose = create_chooser(policy, config, env, "train", seed)
        demonstrator = Demonstrator(name, choose, noisy=policy == "expert")
        return folder, collect(config.collect, train, env, mapping, seed, folder, demonstrator)
    finally:
        env.close()


def train_base(
    config: ExperimentConfig, data: Path | None = None, backbone: Path | None = None, output: Path | None = None
) -> tuple[Path, SftResult]:
    """Train a base model into `output` (default: `sft.output_dir`).

    Raises:
        UserError: The dataset or the backbone is not there.
    """
    sft = config.sft
    assert sft is not None
    if data is None:
        collected = config.collect.output_dir if config.collect else "demos"
        data = Path(sft.data or collected)
    if config.actor.model.needs_pretrained:
        backbone = backbone or _backbone(config)
    seed = config.seed if sft.seed is None else sft.seed
    folder = output or Path(sft.output_dir)
    return folder, train_base_model(config, data, backbone, seed, folder)


def _backbone(config: ExperimentConfig) -> Path:
    """The pretrained backbone that the configuration names, or the cached one.

    Raises:
        UserError: It is not there.
    """
    assert config.sft is not None
    expected = "a folder written by `regrasp pretrain`"
    mend = (
        "run `regrasp pretrain` with the same --config_name and the same pretrain.* overrides first (minutes),"
        " or use another backbone with sft.backbone=<folder>"
    )
    if config.pretrain is None:
        expected, mend = PUBLISHED_BACKBONE, DOWNLOAD_BACKBONE
    if config.sft.backbone:
        folder = Path(config.sft.backbone)
        problem = "The pretrained backbone that sft.backbone names is not there"
    elif config.pretrain is not None:
        folder = cached_backbone(config.pretrain)
        problem = f"No backbone was pretrained with these values of pretrain.*; it would be {folder}"
    else:
        raise UserError("No pretrained backbone is given", key="sft.backbone", expected=expected, mend=mend)
    if not (folder / "config.json").is_file():
        raise UserError(problem, key="sft.backbone", value=str(folder), expected=expected, mend=mend)
    return folder
