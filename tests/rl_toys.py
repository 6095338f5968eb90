"""A scripted vector environment, a policy that repeats what it sees, and tiny real policies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from regrasp.algorithms.ppo import PpoConfig
from regrasp.envs.contract import Capabilities, EnvSpec, Observation, Step, VecEnv
from regrasp.envs.mapping import ActionMapping
from regrasp.envs.mapping_config import ActionMapping as ActionMappingConfig
from regrasp.envs.mapping_config import MappingConfig
from regrasp.experiment import ActorConfig, OptimConfig
from regrasp.experiment.fsdp import FsdpConfig
from regrasp.learner.learner import Learner
from regrasp.models.config import RlHeadConfig
from regrasp.models.contract import Action, Evaluation, Noise, Policy, PolicySpec
from regrasp.models.groot.architecture import ArchitectureConfig
from regrasp.models.groot.config import GrootConfig
from regrasp.models.groot.policy import GrootPolicy
from regrasp.models.groot.processing.processor import GrootProcessor
from regrasp.models.groot.settings import GrootModelConfig
from regrasp.models.mlp.policy import MlpPolicy
from regrasp.ranks import Ranks
from regrasp.rollout.buffers import RolloutBuffer
from regrasp.rollout.decisions import Decisions
from regrasp.rollout.inference import Inference
from regrasp.seeding import KeyedNoise

PolicyT = TypeVar("PolicyT", bound=Policy)
ACTION_DIM = 3
CHUNK = 3
LIMIT = 7
SIZE = 32
"""Decisions of a rollout."""
SEED = 5


@dataclass(frozen=True)
class Script:
    """How one episode goes."""

    length: int
    """Environment steps; `LIMIT` or more is a truncation at `LIMIT`."""
    success: bool = False


@dataclass
class ScriptedEnv(VecEnv):
    """Keeps the contract to the letter; the state is (environment, episode, step), and so is what it executes."""

    scripts: Sequence[Sequence[Script]]
    """By environment, by episode; the last one repeats."""
    capabilities: Capabilities = field(default_factory=Capabilities)  # pyright: ignore[reportIncompatibleVariableOverride]
    executed: list[tuple[int, int, int, list[float]]] = field(default_factory=list)
    """(environment, episode, step, action) of everything that was executed."""
    resets: list[tuple[int, int]] = field(default_factory=list)
    """(environment, seed)."""
    num_calls: int = 0

    def __post_init__(self) -> None:
        count = len(self.scripts)
        self.spec = EnvSpec(
            task_id="Scripted-v0",
            num_envs=count,
            raw_observations={},
            action_dim=ACTION_DIM,
            instructions=("do it",),
            step_seconds=0.1,
            max_episode_steps=LIMIT,
            state_dim=3,
            cameras=(),
        )
        self.episode = torch.full((count,), -1)
        self.steps = torch.zeros(count, dtype=torch.long)
        self.running = torch.zeros(count, dtype=torch.bool)

    def reset(self, env_ids: Sequence[int], seeds: Sequence[int]) -> Observation:
        self.resets += zip(env_ids, seeds, strict=True)
        rows = torch.tensor(list(env_ids))
        self.episode[rows] += 1
        self.steps[rows] = 0
        self.running[rows] = True
        return self.observe()

    def step(self, actions: Tensor) -> Step:
        self.num_calls += 1
        count, length = actions.shape[:2]
        rewards = torch.zeros(count, length)
        num_executed, flags = torch.zeros(count, dtype=torch.long), torch.zeros(3, count, dtype=torch.bool)
        for row in torch.nonzero(self.running).flatten().tolist():
            script = self.script(row)
            for t in range(length):
                self.executed.append((row, int(self.episode[row]), int(self.steps[row]), actions[row, t].tolist()))
                self.steps[row] += 1
                num_executed[row] += 1
                rewards[row, t] = self.reward(row)
                if self.steps[row] == min(script.length, LIMIT):
                    terminated = script.length < LIMIT
                    flags[:, row] = torch.tensor([terminated, not terminated, script.success])
                    self.running[row] = False
                    break
        return Step(self.observe(), rewards, num_executed, *flags, info={"stage": self.steps.float()})

    def script(self, row: int) -> Script:
        """The script of the present episode."""
        own = self.scripts[row]
        return own[min(int(self.episode[row]), len(own) - 1)]

    def reward(self, row: int) -> float:
        """Of the step just taken."""
        return float(self.steps[row] + 10 * self.episode[row] + 100 * row)

    def observe(self) -> Observation:
        count = len(self.scripts)
        states = torch.stack([torch.arange(count), self.episode, self.steps], 1).float()
        return Observation({}, {"state": states}, ["do it"] * count)

    def share_vectors(self) -> None:
        pass

    def raw_observation(self) -> dict[str, Tensor]:
        return {}

    def expert_actions(self) -> Tensor:
        raise AssertionError("no expert")

    def record(self, env_ids: Sequence[int], height: int = 256, width: int = 256) -> None:
        raise AssertionError("no camera")

    def state_dict(self) -> dict[str, Tensor]:
        return {"episode": self.episode.clone(), "steps": self.steps.clone(), "running": self.running.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> Observation:
        for name, value in state.items():
            setattr(self, name, value.clone())
        return self.observe()

    def close(self, deadline: float = 10.0) -> None:
        pass


class EchoPolicy(Policy):
    """Acts what it sees: every action of a chunk is the state, and the value is a number that names the state."""

    spec = PolicySpec(CHUNK, action_horizon=CHUNK, action_dim=3, state_dim=3)

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.keys: list[list[tuple[int, int, int]]] = []

    def prepare(self, observation: Observation) -> TensorDict:
        return TensorDict({"state": observation.state["state"]}, batch_size=[len(observation)])

    def encode(self, inputs: TensorDict) -> TensorDict:
        return inputs

    def act(self, features: TensorDict, noise: Noise, deterministic: bool = False) -> Action:
        assert isinstance(noise, KeyedNoise)
        self.keys.append(list(noise.keys))
        actions = features["state"][:, None].expand(-1, CHUNK, -1).clone()
        trace = TensorDict({"state": features["state"]}, batch_size=features.batch_size)
        return Action(actions, torch.zeros_like(actions), self.value(features), trace)

    def value(self, features: TensorDict) -> Tensor:
        return value_of(features["state"])

    def evaluate(self, features: TensorDict, trace: TensorDict) -> Evaluation:
        raise AssertionError("never trained")

    def decode(self, features: TensorDict, initial_noise: Tensor) -> Tensor:
        raise AssertionError("never decoded")

    def trainable(self, part: str) -> Sequence[tuple[str, nn.Parameter]]:
        return [("weight", self.weight)]

    def sft_loss(self, features: TensorDict, actions: Tensor, valid: Tensor, noise: Noise, repeats: int = 1) -> Tensor:
        raise AssertionError("never trained")

    def save(self, folder: Any) -> None:
        raise AssertionError("never saved")


def value_of(states: Tensor) -> Tensor:
    """The value that `EchoPolicy` gives states (B, 3)."""
    return states @ torch.tensor([1.0, 0.1, 0.01])


def plain_mapping(scale: float = 1.0) -> ActionMapping:
    config = MappingConfig(action_mapping=ActionMappingConfig(scale=scale))
    return ActionMapping(config, ACTION_DIM, ACTION_DIM, "env.train.mapping")


_SENTENCES = ("do it", "do not", "pick up the red cube", "pick up the green cube", "pick up the blue cube")


def mlp_policy(seed: int = 0) -> MlpPolicy:
    """A state policy whose value head is not zero."""
    policy = MlpPolicy(state_dim=3, action_dim=ACTION_DIM, num_action_chunks=CHUNK, hidden=(16, 16), seed=seed)
    return perturbed(policy)


def groot_settings(**changes: Any) -> GrootModelConfig:
    """`actor.model` of a GR00T; keys of `rl_head_config` stand beside the others, and `lora` means that it is used."""
    head = {name: changes.pop(name) for name in vars(RlHeadConfig()) if name in changes}
    if "lora" in changes:
        changes["is_lora"] = True
    return GrootModelConfig(rl_head_config=RlHeadConfig(**head), **changes)


def groot_policy(
    *, image_size: int = 28, state_dim: int = 3, action_dim: int = ACTION_DIM, **changes: Any
) -> GrootPolicy:
    """A tiny GR00T of random weights; critics come with an actor beside its head."""
    config = GrootConfig.tiny(
        ArchitectureConfig(
            image_size=image_size,
            vision_width=16,
            vision_heads=2,
            vision_mlp=32,
            language_width=24,
            language_heads=2,
            language_head_dim=8,
            language_mlp=32,
            vocab_size=300,
            head_width=16,
            head_layers=2,
            head_heads=2,
        )
    )
    processor = GrootProcessor.fresh(
        config,
        _SENTENCES,
        num_views=1,
        state_dim=state_dim,
        action_dim=action_dim,
        text_length=10,
        text_first=True,
    )
    values: dict[str, Any] = {"num_action_chunks": CHUNK, "action_dim": action_dim, "value_head_hidden": (8,)}
    settings = groot_settings(**(values | changes))
    policy = GrootPolicy(config, processor, settings, steering=settings.steering)
    policy.backbone.reset_parameters(torch.Generator().manual_seed(0))
    return perturbed(policy)


def perturbed(policy: PolicyT) -> PolicyT:
    """Every parameter moved a little, so that nothing is zero by its initialisation."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return policy.eval()


def observation(batch: int, seed: int = 0, size: int = 28) -> Observation:
    """Random images and states."""
    generator = torch.Generator().manual_seed(seed)
    return Observation(
        images={"main": torch.randint(0, 256, (batch, size, size, 3), generator=generator, dtype=torch.uint8)},
        state={"state": torch.randn(batch, 3, generator=generator)},
        instruction=[("do it", "do not")[i % 2] for i in range(batch)],
    )


def rollout_of(policy: Policy, size: int, *, keep_features: bool = True, uneven: bool = True) -> Decisions:
    """`size` decisions of one step each, with random rewards and (if `uneven`) chunks cut short."""
    worker = Inference(policy, 0, "train", device=torch.device("cpu"), keep_features=keep_features)
    decision = worker.decide(observation(size), [(row, 0, 0) for row in range(size)])
    generator = torch.Generator().manual_seed(1)
    buffer = RolloutBuffer(holds_features=keep_features)
    buffer.add(
        0,
        torch.arange(size),
        decision.inputs,
        decision.action,
        torch.randn(size, CHUNK, generator=generator),
        torch.randint(1, CHUNK + 1, (size,), generator=generator) if uneven else torch.full((size,), CHUNK),
        torch.ones(size, dtype=torch.bool),
        version=0,
    )
    return PpoConfig(gamma=0.9, gae_lambda=0.9).build().prepare(buffer.build())


def worker(
    policy: Policy,
    *,
    batch: int = SIZE,
    micro: int | None = None,
    optim: Mapping[str, Any] | None = None,
    trainable: str = "head",
    is_lora: bool = False,
    num_updates: int = 10,
    precision: str = "fp32",
    device: str = "cpu",
    ranks: Ranks | None = None,
    fsdp_config: FsdpConfig | None = None,
    **algorithm: Any,
) -> Learner:
    """A learner of the policy, with minibatches of `batch` decisions."""
    model = GrootModelConfig(
        action_dim=ACTION_DIM,
        num_action_chunks=CHUNK,
        trainable=trainable,  # pyright: ignore[reportArgumentType]
        is_lora=is_lora,
        precision=precision,  # pyright: ignore[reportArgumentType]
    )
    actor = ActorConfig(
        model=model,
        micro_batch_size=micro or batch,
        global_batch_size=batch,
        optim=OptimConfig(**{"lr": 1e-3, "value_lr": 1e-3, **(optim or {})}),
        fsdp_config=fsdp_config or FsdpConfig(),
    )
    return Learner(
        policy,
        PpoConfig(**algorithm).build(),
        actor,
        num_updates=num_updates,
        seed=SEED,
        device=torch.device(device),
        ranks=ranks,
    )


def never() -> bool:
    """Nothing is to be stopped."""
    return False


def weights(policy: Policy) -> dict[str, Tensor]:
    """A copy of the stored weights."""
    return {name: value.clone() for name, value in policy.state_dict().items()}
