"""The engine that a run's placement asks for, with environments and policy."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Iterator
from pathlib import Path

from regrasp.checkpoint.read import read_checkpoint
from regrasp.engine.base import Engine
from regrasp.engine.local import LocalEngine
from regrasp.engine.placement import Plan, Resources, plan, remarks, require_ray
from regrasp.engine.policies import check_fit, create_policy, load_model, use_device
from regrasp.envs.contract import Capabilities, EnvSpec
from regrasp.envs.registry import create_env
from regrasp.errors import UserError
from regrasp.experiment import ExperimentConfig
from regrasp.experiment.load import made_with
from regrasp.models.contract import Policy
from regrasp.runner.interrupt import StopRequest
from regrasp.stages.replayed_demonstrations import find_demonstrations, replayed_demonstrations

_log = logging.getLogger(__name__)

_LOSSES = {
    "seed_per_env": "seeds cannot be set per environment, so results depend on the number of environments",
    "partial_reset": "single environments cannot be reset, so finished ones wait for the others",
    "true_final_observation": (
        "the true final observation is not available, so truncated episodes are not bootstrapped"
    ),
    "saves_state": "the simulator's state cannot be saved, so a resumed run begins its episodes anew",
}
"""What a simulator's lack of a capability costs."""


@contextlib.contextmanager
def started_engine(config: ExperimentConfig, run_dir: Path, checkpoint: Path | None) -> Iterator[Engine]:
    """Start everything that a run needs, and stop it at the end.

    Environments of training and, if the run evaluates, of evaluation start before the first update: some simulators
    tell what they offer only then, and a mistake in `env.eval` should not show after hours of training.

    Args:
        config: The experiment.
        run_dir: Folder of the run.
        checkpoint: What the run goes on from, if it does.

    Raises:
        UserError: The placement cannot be met, or policy and environments do not fit.
        InterruptedError: A signal came while several processes started.
    """
    cluster, num_processes = config.cluster, 1
    if cluster.address is None:
        placed = plan(config, Resources.of_this_machine(cluster.num_nodes))
        require_ray(placed.processes)
        if placed.is_local:
            with _local(config, placed, run_dir, checkpoint) as engine:
                yield engine
            return
        num_processes = len(placed.processes)
    with _several(config, num_processes, run_dir, checkpoint) as engine:
        yield engine


@contextlib.contextmanager
def _local(config: ExperimentConfig, placed: Plan, run_dir: Path, checkpoint: Path | None) -> Iterator[Engine]:
    chunk, seed = config.actor.model.num_action_chunks, config.seed
    with contextlib.ExitStack() as started:
        stages = []
        for share in placed.env_shares:
            block = share.of(config.env.train)
            stages.append(started.enter_context(contextlib.closing(create_env(block, "train", chunk, seed))))
        eval_env = None
        if config.runner.val_check_interval > 0:
            eval_env = create_env(config.env.eval, "eval", chunk, seed)
            started.enter_context(contextlib.closing(eval_env))
        _warn_of(stages[0].capabilities)
        policy = starting_policy(config, stages[0].spec, None if eval_env is None else eval_env.spec, checkpoint)
        engine = LocalEngine(config, policy, stages, seed, use_device(placed.processes[0].device), run_dir, eval_env)
        if (folder := config.algorithm.demonstrations) is not None:
            features = find_demonstrations(config, Path(folder).expanduser())
            engine.algorithm.demonstrate(replayed_demonstrations(config, features, engine.policy))
        yield engine


@contextlib.contextmanager
def _several(config: ExperimentConfig, num_processes: int, run_dir: Path, checkpoint: Path | None) -> Iterator[Engine]:
    from regrasp.engine.ray.cluster import connected
    from regrasp.engine.ray.engine import RayEngine
    from regrasp.engine.ray.nodes import require_room, require_shared
    from regrasp.engine.ray.processes import Makers

    if config.algorithm.demonstrations is not None:
        raise UserError(
            "Demonstrations are replayed where one process has everything",
            key="algorithm.demo_buffer",
            value=config.algorithm.demonstrations,
            expected="null, with several processes",
            fix="leave the block cluster out, or set algorithm.demo_buffer=null",
        )
    inputs: dict[str, Path] = {}
    if (folder := config.actor.model.model_path) is not None:
        inputs["actor.model.model_path"] = Path(folder).expanduser().absolute()
    if checkpoint is not None:
        inputs["runner.resume_dir"] = checkpoint.absolute()
    with contextlib.ExitStack() as started:
        stop = started.enter_context(StopRequest("Stopping. A second signal stops at once."))
        machines = started.enter_context(connected(config.cluster.address, num_processes))
        started.callback(stop.ignore)  # while Ray's servers end
        stop.catch()  # Ray has its own handlers
        placed = plan(config, machines.resources)
        if config.cluster.address is not None:  # of this machine alone they are known before
            for remark in remarks(config, placed.processes, machines.resources):
                _log.warning(remark)
        require_shared(machines, placed, run_dir.absolute(), inputs)
        require_room(machines, placed, config)
        make_policy = functools.partial(starting_policy, checkpoint=checkpoint)
        makers = Makers(create_env, make_policy)
        engine = RayEngine(config, placed, machines, config.seed, run_dir, makers, lambda: stop.requested)
        started.callback(engine.close)
        started.callback(stop.ignore)  # while the processes end
        _warn_of(engine.capabilities)
        yield engine


def _warn_of(capabilities: Capabilities) -> None:
    for warning in lost_guarantees(capabilities):
        _log.warning(warning)


def lost_guarantees(capabilities: Capabilities) -> list[str]:
    """What a run on such environments cannot promise, because the simulator cannot."""
    return [text for name, text in _LOSSES.items() if not getattr(capabilities, name)]


def starting_policy(
    config: ExperimentConfig, train: EnvSpec, evaluation: EnvSpec | None, checkpoint: Path | None
) -> Policy:
    """The policy that the run starts or started from; one that cannot be had again is taken from the checkpoint.

    Args:
        config: The experiment.
        train: What the training environments offer.
        evaluation: What those of evaluation offer, if the run evaluates.
        checkpoint: What the run goes on from, if it does.

    Raises:
        UserError: The policy cannot be had, or does not fit the environments.
    """
    model, mapping = config.actor.model, config.env.train.mapping
    export = None if checkpoint is None else read_checkpoint(checkpoint).export
    if model.model_path is not None or not model.needs_pretrained or export is None:
        policy = create_policy(model, mapping, train, config.seed)
    elif config.algorithm.keeps_start:
        raise UserError(
            "The penalty on the divergence from the start needs the policy that the run started from",
            key="actor.model.model_path",
            expected="the folder that the run was begun with",
            fix="pass --model_path",
        )
    else:
        policy = load_model(model, export, mapping)
        check_fit(policy, mapping, train)
    if evaluation is not None:
        check_fit(policy, config.env.eval.mapping, evaluation, "env.eval.mapping")
    policy.origin = policy.origin.trained_on(config.env.train.init_params.id).made_with(*made_with(config))
    return policy
