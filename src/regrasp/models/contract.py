"""The contract every policy keeps. Trainers know this file and nothing about the model behind it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from regrasp.envs.contract import Observation
from regrasp.models.observations import check_observation
from regrasp.seeding import KeyedNoise

Mode = Literal["encode", "act", "evaluate", "value", "decode"]


class Noise(Protocol):
    """Random numbers for B rows, drawn from streams keyed by environment, episode and decision.

    A row's numbers do not depend on which other rows are in the batch. The same `name` gives the same numbers.
    """

    def normal(self, name: str, *shape: int) -> Tensor:
        """(B, *shape) float32 standard normal numbers."""
        ...

    def integers(self, name: str, high: int) -> Tensor:
        """(B,) int64 uniform numbers in [0, high)."""
        ...


@dataclass
class Action:
    """What a policy decided for B environments."""

    actions: Tensor
    """(B, T, A) float32 in the policy's physical units: T = num_action_chunks, A = action_dim."""
    log_probs: Tensor
    """(B, T, A) float32, element by element."""
    values: Tensor
    """(B,) float32, or (B, T) with one value per action."""
    trace: TensorDict
    """What `evaluate` needs to recompute the log-probabilities (for a flow head: denoising chain and step index)."""


@dataclass
class Evaluation:
    """A stored decision looked at with the present weights."""

    log_probs: Tensor
    """(B, T, A)."""
    values: Tensor
    """(B,) or (B, T)."""
    entropy: Tensor | None
    """(B, T, A), or None where the policy's density has none in closed form."""


@dataclass(frozen=True)
class PolicySpec:
    """Sizes that the environment mapping must agree with."""

    num_action_chunks: int
    """Actions executed per decision, T."""
    action_horizon: int
    """Actions predicted per decision, H; the first T are executed."""
    action_dim: int
    state_dim: int
    image_size: tuple[int, int] | None
    """Expected (height, width) of camera images, None where the policy resizes or ignores images."""
    cameras: tuple[str, ...] = ()
    """Names of the cameras used, in the policy's order; none for a state policy."""
    state_parts: tuple[tuple[str, int], ...] = ()
    """Name and width of what the state is made of, in order; empty where a policy knows of no parts."""
    embodiment_tag: str | None = None
    """The embodiment it was trained for; None where a policy knows of none."""
    embodiment_id: int | None = None
    """Slot of the per-embodiment projectors, None for a policy without."""

    @property
    def num_views(self) -> int:
        """Cameras used; 0 for a state policy."""
        return len(self.cameras)


class Policy(nn.Module, ABC):
    """One `forward(mode=...)`, so that sharded modules see every call through their hooks.

    Modes and their keyword arguments:
        encode(inputs: TensorDict) -> TensorDict: features, the part that RL may freeze and cache.
        act(features, noise, deterministic=False) -> Action.
        evaluate(features, trace) -> Evaluation.
        value(features) -> Tensor (B,) or (B, T).
        decode(features, initial_noise: Tensor) -> Tensor (B, T, A): deterministic actions, differentiable.
    """

    spec: PolicySpec
    capturable: tuple[str, ...] = ()
    """Methods, from tensors and numbers to tensors, that a GPU may replay as CUDA graphs where nothing is trained."""
    product_layers: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv2d)
    """Layers whose weights are used in matrix products alone, so that autocast casts them."""

    @abstractmethod
    def prepare(self, observation: Observation) -> TensorDict:
        """Turn an observation into plain tensors (images, token ids, normalised state); no weights involved."""

    def forward(self, mode: Mode, **inputs: Any) -> Any:
        """Dispatch on `mode`, see the class docstring."""
        match mode:
            case "encode":
                return self._encode(**inputs)
            case "act":
                return self._act(**inputs)
            case "evaluate":
                return self._evaluate(**inputs)
            case "value":
                return self._value(**inputs)
            case "decode":
                return self._decode(**inputs)
        raise ValueError(f"unknown mode {mode!r}")

    @property
    def schedule(self) -> tuple[float, ...]:
        """Numbers that `begin_update` sets; by default there are none."""
        return ()

    def begin_update(self, update: int) -> None:
        """Hear how many updates the run has made, for schedules such as noise annealing; by default nothing follows."""

    def prepare_acting(self) -> None:
        """Compute ahead what acting needs of the weights alone; by default nothing.

        Called on a copy that only acts, without gradients, whenever its trained weights have changed.
        """

    @torch.no_grad()
    def predict(self, observation: Observation, seed: int = 0) -> Tensor:
        """Deterministic actions (B, T, A) in physical units.

        Args:
            observation: B environments.
            seed: A flow head starts from noise drawn by this seed; row i always gets the same noise.

        Raises:
            UserError: A part of the observation is missing, no tensor, of a wrong size, or a state not finite.
        """
        check_observation(observation, uses_images=self.spec.num_views > 0)
        device = next(self.parameters()).device
        noise = KeyedNoise(seed, "eval", [(row, 0, 0) for row in range(len(observation))])
        features = self("encode", inputs=self.prepare(observation).to(device))
        return self("act", features=features, noise=noise, deterministic=True).actions

    @abstractmethod
    def trainable(self, part: str) -> Sequence[tuple[str, nn.Parameter]]:
        """Named parameters of a part: `head` (all after the features), `value_head`, `backbone`, or `all`."""

    def prepare_training(self, part: str) -> Sequence[tuple[str, nn.Parameter]]:
        """Freeze everything but a part and return what trains; the weights are already where they will be trained.

        A policy may set apart what trains of a larger tensor, or add adapters: `trainable` then names these.
        """
        self.requires_grad_(False)
        trained = self.trainable(part)
        for _, parameter in trained:
            parameter.requires_grad_(True)
        return trained

    def methods_to_compile(self) -> Sequence[tuple[nn.Module, str]]:
        """Methods of modules to compile, one by one: those of alike modules share their code; by default none."""
        return ()

    def published_state(self) -> dict[str, Tensor]:
        """Tensors of a model folder: `state_dict`, with adapters merged into the weights they adapt."""
        return self.state_dict()

    @abstractmethod
    def sft_loss(self, features: TensorDict, actions: Tensor, valid: Tensor, noise: Noise, repeats: int = 1) -> Tensor:
        """Loss of imitating demonstrated actions, a scalar: a mean over all valid steps.

        Args:
            features: Of mode `encode`, B rows.
            actions: (B, H, A) in physical units, H the policy's action horizon.
            valid: (B, H) bool, False past the end of the demonstration.
            noise: Random numbers of the B rows.
            repeats: Draws of noise for each row, for a policy whose loss is an expectation over noise.
        """

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write a self-contained Hugging Face style folder (config.json, model.safetensors, processor files)."""

    @abstractmethod
    def _encode(self, inputs: TensorDict) -> TensorDict: ...

    @abstractmethod
    def _act(self, features: TensorDict, noise: Noise, deterministic: bool = False) -> Action: ...

    @abstractmethod
    def _evaluate(self, features: TensorDict, trace: TensorDict) -> Evaluation: ...

    @abstractmethod
    def _value(self, features: TensorDict) -> Tensor: ...

    @abstractmethod
    def _decode(self, features: TensorDict, initial_noise: Tensor) -> Tensor: ...
