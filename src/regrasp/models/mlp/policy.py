"""A Gaussian policy on states: an MLP gives the mean of a whole action chunk, a second one the value."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic.dataclasses import dataclass
from tensordict import TensorDict
from torch import Tensor, nn

from regrasp.algorithms.flow import gaussian_entropy, gaussian_log_prob
from regrasp.checkpoint.hub_folder import list_safetensors
from regrasp.config.parse import parse
from regrasp.config.types import BLOCK, Expect, NetworkSize
from regrasp.envs.contract import STATE, Observation
from regrasp.envs.quaternions import QuaternionOrder
from regrasp.models.config import CONFIG_FILE, QHeadConfig
from regrasp.models.contract import Action, Evaluation, Noise, Policy, PolicySpec, StateRange
from regrasp.models.initialization import seeded
from regrasp.models.normalization import Normalizer, Statistics
from regrasp.models.observations import state_of
from regrasp.models.proposals import Proposal, bounded_log_std, squashed
from regrasp.models.q_head import QHead, StateReader
from regrasp.models.value_head import init_mlp, silu_mlp
from regrasp.models.weights import WEIGHTS_FILE, assign_weights, check_weights, read_json, write_json, write_weights

MODEL_TYPE = "regrasp_mlp"
_SIZES = ("state_dim", "action_dim", "num_action_chunks")
_ACTOR = ("actor.", "log_std")
_PARTS = {
    "all": (*_ACTOR, "value_head."),
    "backbone": (),
    "head": _ACTOR,
    "head_without_context": _ACTOR,
    "proposal": _ACTOR,
    "value_head": ("value_head.",),
    "q_head": ("q_head.",),
}


_Lists = Annotated[dict[str, Any], Expect("lists of numbers by name")]


@dataclass(frozen=True, config=BLOCK)
class _FolderStatistics:
    """`statistics` of config.json."""

    state: _Lists
    action: _Lists


@dataclass(frozen=True, config=BLOCK)
class _FolderConfig:
    """config.json of a folder."""

    model_type: str
    state_dim: NetworkSize
    action_dim: NetworkSize
    num_action_chunks: NetworkSize
    hidden: tuple[NetworkSize, ...]
    statistics: _FolderStatistics
    squashed: bool = False
    quaternions: QuaternionOrder | None = None


class MlpPolicy(Policy):
    """Independent Gaussians over a chunk of T actions, with a learned standard deviation that no state changes.

    Features are the normalised `state` (B, D); the trace is `actions` (B, T, A) in normalised units.

    Squashed, for soft actor-critic: the standard deviation depends on the state, and a tanh bounds actions to [-1, 1]
    in normalised units, which are those of the simulator where the action has no statistics.

    Args:
        state_dim: D.
        action_dim: A.
        num_action_chunks: T.
        hidden: Widths of the hidden layers of the actor and of the critic.
        initial_std: Initial standard deviation, in normalised action units.
        state: Statistics of the state (mean_std), None to leave it as it is.
        action: Statistics of the action (min_max), None to leave it as it is.
        quaternions: In which order the state has them; None where it is not known.
        add_value_head: Without it, values are None.
        squashed: See above.
        q_head: Sizes of the critics; None: there are none.
        seed: Draws the initial weights.
    """

    def __init__(
        self,
        *,
        state_dim: int,
        action_dim: int,
        num_action_chunks: int = 1,
        hidden: tuple[int, ...] = (256, 256),
        initial_std: float = 0.5,
        state: Statistics | None = None,
        action: Statistics | None = None,
        quaternions: QuaternionOrder | None = None,
        add_value_head: bool = True,
        squashed: bool = False,
        q_head: QHeadConfig | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.spec = PolicySpec(
            num_action_chunks=num_action_chunks,
            action_horizon=num_action_chunks,
            action_dim=action_dim,
            state_dim=state_dim,
            quaternions=quaternions,
        )
        self.hidden = hidden
        self.statistics = {
            "state": state or Statistics.identity(state_dim),
            "action": action or Statistics.identity(action_dim),
        }
        if state is not None and not state.is_identity:
            self.state_range = StateRange(((STATE, state_dim),), state.min, state.max)
        self._state = Normalizer(self.statistics["state"], "mean_std")
        self._action = Normalizer(self.statistics["action"], "min_max")
        self._shape = (num_action_chunks, action_dim)
        self.squashed = squashed
        width = num_action_chunks * action_dim
        with seeded(seed):
            self.actor = silu_mlp((state_dim, *hidden, 2 * width if squashed else width))
            self.value_head = silu_mlp((state_dim, *hidden, 1)) if add_value_head else None
        self.log_std = nn.Parameter(torch.full(self._shape, math.log(initial_std)))
        if squashed:
            self.register_parameter("log_std", None)
        generator = torch.Generator().manual_seed(seed)
        init_mlp(self.actor, generator)
        if self.value_head is not None:
            init_mlp(self.value_head, generator)
        if squashed:
            self.proposal_width = self.noise_width = width
        if q_head is not None:
            self.q_head = QHead(StateReader(state_dim), width, q_head)
            self.q_head.reset_parameters(generator)

    @property
    def offers(self) -> frozenset[str]:
        """The Gaussian's entropy too, and values where there is a value head; squashed, critics alone."""
        parts = {"value": self.value_head, "q_head": self.q_head}
        own = () if self.squashed else ("log_prob", "entropy")
        return frozenset({*own, *(name for name, part in parts.items() if part is not None)})

    def prepare(self, observation: Observation) -> TensorDict:
        """The normalised `state` (B, D).

        Raises:
            UserError: The state has another width.
        """
        state = state_of(observation, {STATE: self.spec.state_dim})
        return TensorDict({"state": self._state.normalize(state)}, batch_size=[len(observation)])

    def trainable(self, part: str) -> Sequence[tuple[str, nn.Parameter]]:
        """Named parameters of a part; `head` is the actor, and nothing is `backbone`."""
        if part not in _PARTS:
            raise ValueError(f"unknown part {part!r}")
        return [item for item in self.named_parameters() if item[0].startswith(_PARTS[part])]

    def stacks(self) -> Sequence[Sequence[nn.Module]]:
        """The networks of actor and value."""
        return [[network] for network in (self.actor, self.value_head) if network is not None]

    def sft_loss(self, features: TensorDict, actions: Tensor, valid: Tensor, noise: Noise, repeats: int = 1) -> Tensor:
        """Mean squared error of the mean, over valid steps, in normalised units; needs no noise."""
        mean, _ = self._distribution(features)
        error = (self._bounded(mean) - self._action.normalize(actions)).square() * valid.unsqueeze(-1)
        return error.sum() / (valid.sum() * self.spec.action_dim).clamp(min=1)

    def save(self, folder: Path) -> None:
        """Write config.json (sizes and statistics) and model.safetensors."""
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "model_type": MODEL_TYPE,
            **{name: getattr(self.spec, name) for name in _SIZES},
            "hidden": self.hidden,
            "statistics": {kind: part.to_mapping() for kind, part in self.statistics.items()},
        }
        if self.squashed:
            content["squashed"] = True
        if self.spec.quaternions is not None:
            content["quaternions"] = self.spec.quaternions
        write_json(folder / CONFIG_FILE, content)
        write_weights(self, folder)

    def encode(self, inputs: TensorDict) -> TensorDict:
        """The normalised state, which is all there is."""
        return inputs.select("state")

    def act(self, features: TensorDict, noise: Noise, deterministic: bool = False) -> Action:
        """Draw a chunk, or take its mean."""
        mean, std = self._distribution(features)
        if deterministic:
            sample, log_probs = self._bounded(mean), torch.zeros_like(mean)
        else:
            sample = mean + std * noise.normal("action", *mean.shape[1:]).to(mean.device)
            log_probs = torch.zeros_like(mean) if self.squashed else gaussian_log_prob(sample, mean, std)
            sample = self._bounded(sample)
        return Action(
            actions=self._action.unnormalize(sample),
            log_probs=log_probs,
            values=self._values(features),
            trace=TensorDict({"actions": sample}, batch_size=[len(sample)]),
        )

    def demonstrated(self, features: TensorDict, actions: Tensor, noise: Noise) -> TensorDict:
        """The actions in normalised units."""
        del features, noise
        return TensorDict({"actions": self._action.normalize(actions)}, batch_size=[len(actions)])

    def propose(self, features: TensorDict, trace: TensorDict, noise: Tensor) -> Proposal:
        """A chunk in normalised units, which depends on the state alone."""
        del trace
        mean, std = self._distribution(features)
        actions, log_probs = squashed(mean.flatten(1), std.log().flatten(1), noise)
        return Proposal(actions, log_probs)

    def evaluate(self, features: TensorDict, trace: TensorDict) -> Evaluation:
        """Log-probabilities, values and entropy of stored chunks; a squashed policy has none in closed form."""
        if self.squashed:
            raise ValueError("a squashed policy learns from critics, not from log-probabilities")
        mean, std = self._distribution(features)
        return Evaluation(
            log_probs=gaussian_log_prob(trace["actions"], mean, std),
            values=self._values(features),
            entropy=gaussian_entropy(std).expand_as(mean),
        )

    def value(self, features: TensorDict) -> Tensor:
        """Values (B,) float32; a policy without a value head has none."""
        values = self._values(features)
        if values is None:
            raise ValueError("this policy was built without a value head")
        return values

    def decode(self, features: TensorDict, initial_noise: Tensor) -> Tensor:
        """The mean chunk: this policy has no noise that decides which action is the best one."""
        mean, _ = self._distribution(features)
        return self._action.unnormalize(self._bounded(mean))

    def _bounded(self, actions: Tensor) -> Tensor:
        return actions.tanh() if self.squashed else actions

    def _values(self, features: TensorDict) -> Tensor | None:
        if self.value_head is None:
            return None
        return self.value_head(features["state"].to(self._dtype)).squeeze(-1).float()

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.actor.parameters()).dtype

    def _distribution(self, features: TensorDict) -> tuple[Tensor, Tensor]:
        """Mean (B, T, A) and standard deviation (T, A), or (B, T, A), before the tanh."""
        output = self.actor(features["state"].to(self._dtype)).float()
        if not self.squashed:
            return output.unflatten(-1, self._shape), self.log_std.float().exp()
        mean, std = output.unflatten(-1, (2, *self._shape)).unbind(1)
        return mean, bounded_log_std(std).exp()


def load_mlp(folder: Path, *, add_value_head: bool | None = None, q_head: QHeadConfig | None = None) -> MlpPolicy:
    """Read a folder written by `MlpPolicy.save`.

    Args:
        folder: The model folder.
        add_value_head: Whether the policy has a value head, a new one where the folder has none; None: as the folder.
        q_head: Sizes of the critics; None: there are none. Those of the folder are only taken with the same sizes.

    Raises:
        UserError: A file is missing or damaged.
    """
    file = folder / CONFIG_FILE
    config = parse(_FolderConfig, read_json(file), file=file, fix="restore the file")
    given, widths = config.statistics, {"state": config.state_dim, "action": config.action_dim}
    statistics = {
        kind: Statistics.from_mapping(getattr(given, kind), file=file, key=f"statistics.{kind}", width=width)
        for kind, width in widths.items()
    }
    stored = list_safetensors(folder)
    if add_value_head is None:
        add_value_head = any(name.startswith("value_head.") for name in stored)
    dropped = (*(() if add_value_head else ("value_head.",)), *(() if q_head else ("q_head.",)))
    stored = {name: tensor for name, tensor in stored.items() if not name.startswith(dropped)}
    build = functools.partial(
        MlpPolicy,
        **{name: getattr(config, name) for name in (*_SIZES, "hidden")},
        **statistics,
        quaternions=config.quaternions,
        add_value_head=add_value_head,
        squashed=config.squashed,
        q_head=q_head,
    )
    optional = (*(("value_head",) if add_value_head else ()), *(("q_head",) if q_head else ()))
    with torch.device("meta"):  # sizes that the weights do not have cost no memory
        check_weights(build(), stored, file=folder / WEIGHTS_FILE, optional=optional)
    policy = build()
    assign_weights(policy, stored, file=folder / WEIGHTS_FILE, optional=optional)
    return policy
