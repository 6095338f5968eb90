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
from regrasp.models.config import CONFIG_FILE
from regrasp.models.contract import Action, Evaluation, Noise, Policy, PolicySpec, StateRange
from regrasp.models.initialization import seeded
from regrasp.models.normalization import Normalizer, Statistics
from regrasp.models.observations import state_of
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
    "value_head": ("value_head.",),
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
    quaternions: QuaternionOrder | None = None


class MlpPolicy(Policy):
    """Independent Gaussians over a chunk of T actions, with a learned standard deviation that no state changes.

    Features are the normalised `state` (B, D); the trace is `actions` (B, T, A) in normalised units.

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
        with seeded(seed):
            self.actor = silu_mlp((state_dim, *hidden, num_action_chunks * action_dim))
            self.value_head = silu_mlp((state_dim, *hidden, 1)) if add_value_head else None
        self.log_std = nn.Parameter(torch.full((num_action_chunks, action_dim), math.log(initial_std)))
        generator = torch.Generator().manual_seed(seed)
        init_mlp(self.actor, generator)
        if self.value_head is not None:
            init_mlp(self.value_head, generator)

    @property
    def offers(self) -> frozenset[str]:
        """The Gaussian's entropy too, and values where there is a value head."""
        return frozenset({"log_prob", "entropy", *(() if self.value_head is None else ("value",))})

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
        """The two networks."""
        return [[network] for network in (self.actor, self.value_head) if network is not None]

    def sft_loss(self, features: TensorDict, actions: Tensor, valid: Tensor, noise: Noise, repeats: int = 1) -> Tensor:
        """Mean squared error of the mean, over valid steps, in normalised units; needs no noise."""
        mean, _ = self._distribution(features)
        error = (mean - self._action.normalize(actions)).square() * valid.unsqueeze(-1)
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
            sample, log_probs = mean, torch.zeros_like(mean)
        else:
            sample = mean + std * noise.normal("action", *mean.shape[1:]).to(mean.device)
            log_probs = gaussian_log_prob(sample, mean, std)
        return Action(
            actions=self._action.unnormalize(sample),
            log_probs=log_probs,
            values=self._values(features),
            trace=TensorDict({"actions": sample}, batch_size=[len(sample)]),
        )

    def evaluate(self, features: TensorDict, trace: TensorDict) -> Evaluation:
        """Log-probabilities, values and entropy of stored chunks."""
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
        return self._action.unnormalize(mean)

    def _values(self, features: TensorDict) -> Tensor | None:
        if self.value_head is None:
            return None
        return self.value_head(features["state"].to(self.log_std.dtype)).squeeze(-1).float()

    def _distribution(self, features: TensorDict) -> tuple[Tensor, Tensor]:
        mean = self.actor(features["state"].to(self.log_std.dtype)).float()
        return mean.unflatten(-1, tuple(self.log_std.shape)), self.log_std.float().exp()


def load_mlp(folder: Path, *, add_value_head: bool | None = None) -> MlpPolicy:
    """Read a folder written by `MlpPolicy.save`.

    Args:
        folder: The model folder.
        add_value_head: Whether the policy has a value head, a new one where the folder has none; None: as the folder.

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
    elif not add_value_head:
        stored = {name: tensor for name, tensor in stored.items() if not name.startswith("value_head.")}
    build = functools.partial(
        MlpPolicy,
        **{name: getattr(config, name) for name in (*_SIZES, "hidden")},
        **statistics,
        quaternions=config.quaternions,
        add_value_head=add_value_head,
    )
    optional = ("value_head",) if add_value_head else ()
    with torch.device("meta"):  # sizes that the weights do not have cost no memory
        check_weights(build(), stored, file=folder / WEIGHTS_FILE, optional=optional)
    policy = build()
    assign_weights(policy, stored, file=folder / WEIGHTS_FILE, optional=optional)
    return policy
