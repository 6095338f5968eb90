"""Puts a training run together: policy, engine, logger, resumed state."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from regrasp.checkpoint.read import Checkpoint, find_checkpoint, read_checkpoint
from regrasp.config.load import LoadedConfig
from regrasp.config.schema import ExperimentConfig
from regrasp.engine.local import LocalEngine
from regrasp.envs.contract import EnvSpec, VecEnv
from regrasp.envs.registry import create_env
from regrasp.errors import UserError
from regrasp.models.contract import Policy
from regrasp.models.registry import load_policy
from regrasp.observe.metrics import MetricsLogger
from regrasp.runners.policies import check_fit, choose_device, create_policy, head_settings, input_names
from regrasp.runners.train import EmbodiedRunner


def train(loaded: LoadedConfig, run_dir: Path) -> bool:
    """Train in `run_dir`, from the checkpoint `runner.resume_dir` if one is given.

    Returns:
        True when the last update was reached.
    """
    config, seed = loaded.config, loaded.config.seed
    checkpoint = None
    if config.runner.resume_dir is not None:
        checkpoint = read_checkpoint(find_checkpoint(Path(config.runner.resume_dir)))
    env = create_env(config.env.train, "train", config.actor.model.num_action_chunks)
    try:
        for warning in lost_guarantees(env):
            print(f"[WARN] {warning}")
        policy = _policy(config, env.spec, seed, checkpoint)
        engine = LocalEngine(config, policy, env, seed, choose_device())
    except BaseException:
        env.close()
        raise
    try:
        return _run(loaded, engine, run_dir, checkpoint)
    finally:
        engine.close()


def lost_guarantees(env: VecEnv) -> list[str]:
    """What a run on these environments cannot promise, because the simulator cannot."""
    capabilities = env.capabilities
    losses = {
        "seeds cannot be set per environment, so results depend on the number of environments": (
            not capabilities.seed_per_env
        ),
        "single environments cannot be reset, so finished ones wait for the others": not capabilities.partial_reset,
        "the true final observation is not available, so truncated episodes are not bootstrapped": (
            not capabilities.true_final_observation
        ),
        "the simulator's state cannot be saved, so a resumed run begins its episodes anew": (
            not capabilities.saves_state
        ),
    }
    return [text for text, lost in losses.items() if lost]


def _run(loaded: LoadedConfig, engine: LocalEngine, run_dir: Path, checkpoint: Checkpoint | None) -> bool:
    names = loaded.config.runner.logger
    text = _settings(loaded)
    with MetricsLogger(
        run_dir,
        project=names.project_name,
        experiment=names.experiment_name,
        backends=names.logger_backends,
        config_text=text,
    ) as logger:
        runner = EmbodiedRunner(loaded.config, engine, logger, run_dir, text)
        if checkpoint is not None:
            runner.resume(checkpoint)
        return runner.run()


def _settings(loaded: LoadedConfig) -> str:
    """The resolved configuration without `resume_dir`: a resumed run is the same experiment."""
    runner = dataclasses.replace(loaded.config.runner, resume_dir=None)
    return dataclasses.replace(loaded, config=dataclasses.replace(loaded.config, runner=runner)).to_yaml()


def _policy(config: ExperimentConfig, env: EnvSpec, seed: int, checkpoint: Checkpoint | None) -> Policy:
    """The policy that the run starts or started from; one that cannot be had again is taken from the checkpoint."""
    model, mapping = config.actor.model, config.env.train.mapping
    again = model.model_path is not None or model.model_type == "mlp"
    if again or checkpoint is None or checkpoint.export is None:
        return create_policy(model, mapping, env, seed)
    if config.algorithm.kl_beta:
        raise UserError(
            "The penalty on the divergence from the start needs the policy that the run started from",
            key="actor.model.model_path",
            value=None,
            expected="the folder that the run was begun with",
            mend="pass --model_path",
        )
    policy = load_policy(checkpoint.export, head_settings(model), input_names(model, mapping))
    check_fit(policy, mapping, env)
    return policy
