"""A training in float64 on a toy of a simulator, by any number of ranks; importable by the processes that run it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from tensordict import TensorDict
from torch import Tensor

from regrasp.algorithms.base import AlgorithmConfig
from regrasp.algorithms.grpo import GrpoConfig
from regrasp.algorithms.ppo import PpoConfig
from regrasp.algorithms.reinforce import ReinforceConfig
from regrasp.algorithms.sac_config import ReplayConfig, SacConfig
from regrasp.checkpoint.read import read_checkpoint
from regrasp.checkpoint.write import new_checkpoint
from regrasp.engine.local import LocalEngine
from regrasp.envs.config import EnvConfig, EnvName
from regrasp.envs.contract import Capabilities, EnvSpec, Observation, Step, VecEnv
from regrasp.experiment import ExperimentConfig
from regrasp.experiment.load import load_config
from regrasp.learner.learner import AbandonedError
from regrasp.models.config import QHeadConfig
from regrasp.models.mlp.policy import MlpPolicy
from regrasp.models.proposals import bounded_log_std
from regrasp.ranks import ProcessGroupRanks, Ranks

NUM_ENVS = 12
UPDATES = 10
SAVED = 2
"""Updates before the checkpoint of a job."""
LIMIT = 28
SIZE = 4
"""Of state, action and chunk."""
CPU = torch.device("cpu")
ALGORITHMS: dict[str, AlgorithmConfig] = {
    "ppo": PpoConfig(update_epoch=2, rollout_epoch=2, target_kl=0.05, value_epochs=1, loss_weighting="trajectory"),
    "grpo": GrpoConfig(update_epoch=2, group_size=2, kl_beta=0.1, dynamic_sampling=1, rewards_upper_bound=0.5),
    "reinpp": ReinforceConfig(update_epoch=2, group_size=3, use_reinpp_baseline=True, entropy_bonus=0.01),
}
STORING: dict[str, AlgorithmConfig] = {
    "sac": SacConfig(
        update_epoch=8, n_step=2, critic_only_steps=3, replay_buffer=ReplayConfig(capacity=300, min_decisions=30)
    )
}
"""Those that train on what is stored, on one rank."""
OVERRIDES = (
    f"env.train.total_num_envs={NUM_ENVS}",
    f"env.eval.total_num_envs={NUM_ENVS}",
    f"env.train.max_steps_per_rollout_epoch={LIMIT}",
    f"env.train.max_episode_steps={LIMIT}",
    "runner.val_check_interval=-1",
    "actor.global_batch_size=15",
    "actor.micro_batch_size=3",
    "actor.optim.lr=3e-3",
    "actor.optim.lr_scheduler=cosine",
)


class PointEnv(VecEnv):
    """A point that actions push: the nearer to its goal, the greater the reward; length and goal are of the seed."""

    capabilities = Capabilities()

    def __init__(self, num_envs: int) -> None:
        self.spec = EnvSpec(
            task_id="Point-v0",
            num_envs=num_envs,
            raw_observations={},
            action_dim=SIZE,
            instructions=("go",),
            step_seconds=0.1,
            max_episode_steps=LIMIT,
            state_dim=SIZE,
            cameras=(),
        )
        self.place, self.goal = torch.zeros(2, num_envs, SIZE)
        self.steps, self.length = torch.zeros(2, num_envs, dtype=torch.long)
        self.running = torch.zeros(num_envs, dtype=torch.bool)

    def reset(self, env_ids: Sequence[int], seeds: Sequence[int]) -> Observation:
        for row, seed in zip(env_ids, seeds, strict=True):
            generator = torch.Generator().manual_seed(seed)
            self.place[row], self.goal[row] = torch.randn(2, SIZE, generator=generator)
            self.length[row] = int(torch.randint(5, 2 * LIMIT, (), generator=generator))
            self.steps[row], self.running[row] = 0, True
        return self.observe()

    def step(self, actions: Tensor) -> Step:
        rewards = torch.zeros(actions.shape[:2])
        num_executed = torch.zeros(len(actions), dtype=torch.long)
        ends = torch.zeros(2, len(actions), dtype=torch.bool)
        for t in range(actions.shape[1]):
            self.place += 0.1 * torch.tanh(actions[:, t]) * self.running[:, None]
            rewards[:, t] = torch.exp(-(self.place - self.goal).square().sum(1)) * self.running
            self.steps += self.running
            num_executed += self.running
            ends |= self.running & torch.stack([self.steps >= self.length, self.steps >= LIMIT])
            self.running &= ~ends.any(0)
        terminated = ends[0]
        return Step(self.observe(), rewards, num_executed, terminated, ends[1] & ~terminated, terminated)

    def observe(self) -> Observation:
        return Observation({}, {"state": self.place - self.goal}, ["go"] * len(self.place))

    def state_dict(self) -> dict[str, Tensor]:
        return {name: getattr(self, name).clone() for name in ("place", "goal", "steps", "length", "running")}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> Observation:
        for name, value in state.items():
            getattr(self, name).copy_(value)
        return self.observe()

    def record(self, env_ids: Sequence[int], height: int = 256, width: int = 256) -> None:
        assert not env_ids

    def close(self, deadline: float = 10.0) -> None:
        pass


class DoublePolicy(MlpPolicy):
    """Computes in float64, so that an order of summation shows in the last digits only."""

    def _values(self, features: TensorDict) -> Tensor | None:
        return None if self.value_head is None else self.value_head(features["state"]).squeeze(-1)

    def _distribution(self, features: TensorDict) -> tuple[Tensor, Tensor]:
        if self.squashed:
            mean, std = self.actor(features["state"]).unflatten(-1, (2, SIZE, SIZE)).unbind(1)
            return mean, bounded_log_std(std).exp()
        return self.actor(features["state"]).unflatten(-1, tuple(self.log_std.shape)), self.log_std.exp()


def experiment(name: str, *overrides: str) -> ExperimentConfig:
    config = load_config("pick_cube_ppo_mlp", [*OVERRIDES, *overrides]).config
    return dataclasses.replace(config, algorithm={**ALGORITHMS, **STORING}[name])


def policy(config: ExperimentConfig) -> DoublePolicy:
    stores = config.algorithm.stores_experience
    made = DoublePolicy(
        state_dim=SIZE,
        action_dim=SIZE,
        num_action_chunks=SIZE,
        hidden=(8, 8),
        squashed=stores,
        q_head=QHeadConfig(hidden=(8, 8)) if stores else None,
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    if "value" not in config.algorithm.needs:
        made.value_head = None
    return made


def create_env(block: EnvConfig, name: EnvName, max_chunk: int, seed: int) -> PointEnv:
    """As `envs.registry.create_env`, in a process of its own."""
    torch.set_default_dtype(torch.float64)
    return PointEnv(block.total_num_envs)


def create_policy(config: ExperimentConfig, train: EnvSpec, evaluation: EnvSpec | None) -> DoublePolicy:
    torch.set_default_dtype(torch.float64)
    return policy(config)


def engine(config: ExperimentConfig, folder: Path, ranks: Ranks, num_stages: int = 1) -> LocalEngine:
    share = NUM_ENVS // ranks.count
    stages = [PointEnv(share // num_stages) for _ in range(num_stages)]
    return LocalEngine(config, policy(config), stages, config.seed, CPU, folder, PointEnv(share), ranks)


@dataclasses.dataclass(frozen=True)
class Job:
    """One training: its results and a checkpoint go into a folder of this name."""

    name: str
    algorithm: str
    overrides: tuple[str, ...] = ()
    resume: Path | None = None
    num_stages: int = 1
    updates: int = UPDATES


def train(rank: int, count: int, folder: Path, jobs: Sequence[Job]) -> None:
    """Train as one of `count` processes, one job after the other."""
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    ranks = Ranks()
    if count > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=count)
        ranks = ProcessGroupRanks(CPU)
    for job in jobs:
        _train(job, folder / job.name, ranks)
    if count > 1:
        dist.destroy_process_group()


def _train(job: Job, folder: Path, ranks: Ranks) -> None:
    folder.mkdir(exist_ok=True)
    made = engine(experiment(job.algorithm, *job.overrides), folder, ranks, job.num_stages)
    begin = 0
    if job.resume is not None:
        checkpoint = read_checkpoint(job.resume)
        made.load(checkpoint)
        begin = checkpoint.step
    lines: list[dict[str, Any]] = []
    for update in range(begin, job.updates):
        if update == SAVED:
            save = folder / "checkpoints"
            if ranks.index:
                made.save(save, update, {}, export=False)
            else:
                new_checkpoint(save, update, lambda draft, step=update: made.save(draft, step, {}, export=False))
        collected = made.collect(update, lambda: False)
        metrics = made.update(update, lambda: False)
        lines.append({**collected.metrics, **metrics, "steps": collected.num_steps, "flat": collected.is_flat})
    episodes = [[result.total_reward, result.length] for result in made.evaluate(NUM_ENVS)]
    (folder / f"episodes_{ranks.index}.json").write_text(json.dumps(episodes))
    weights = {name: weight.clone() for name, weight in made.training.weights()}
    if not ranks.index:
        (folder / "metrics.json").write_text(json.dumps(lines))
        save_file(weights, folder / "weights.safetensors")


def abandon(rank: int, count: int, folder: Path) -> None:
    """Begin an update, in the second step of which the last rank alone wants to stop; write how it ended."""
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=count)
    made = engine(experiment("reinpp"), folder, ProcessGroupRanks(CPU))
    made.collect(0, lambda: False)
    answers = iter([False, rank == count - 1])
    try:
        made.update(0, lambda: next(answers))
        ending = "finished"
    except AbandonedError:
        ending = "abandoned"
    (folder / f"ending_{rank}").write_text(f"{ending} after {made.training.learner.num_steps}")
    dist.destroy_process_group()
