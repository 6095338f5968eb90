"""The contract every policy keeps. Trainers know this file and nothing about the model behind it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from types import MethodType
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from regrasp.envs.contract import Observation
from regrasp.envs.quaternions import QuaternionOrder
from regrasp.errors import UserError
from regrasp.models.observations import check_observation
from regrasp.models.origin import Origin
from regrasp.models.proposals import Proposal
from regrasp.models.q_head import QHead
from regrasp.seeding import KeyedNoise


@runtime_checkable
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

    def of_episode(self) -> Noise:
        """Noise that is the same for all decisions of an episode; its names are to be other ones."""
        ...

    def rows(self, rows: slice) -> Noise:
        """The noise of these rows."""
        ...


@dataclass
class Action:
    """What a policy decided for B environments."""

    actions: Tensor
    """(B, T, A) float32 in the policy's physical units: T = num_action_chunks, A = action_dim."""
    log_probs: Tensor
    """(B, T, A) float32, element by element."""
    values: Tensor | None
    """(B,) float32; None without a value head."""
    trace: TensorDict
    """What `evaluate` needs to recompute the log-probabilities (for a flow head: denoising chain and step index)."""


@dataclass
class Evaluation:
    """A stored decision looked at with the present weights."""

    log_probs: Tensor
    """(B, T, A)."""
    values: Tensor | None
    """(B,); None without a value head."""
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
    """Of the state; 0 for a policy that looks at none."""
    cameras: tuple[str, ...] = ()
    """Names of the cameras used, in the policy's order; none for a state policy."""
    state_parts: tuple[tuple[str, int], ...] = ()
    """Name and width of what the state is made of, in order; empty where a policy knows of no parts."""
    action_parts: tuple[tuple[str, int], ...] = ()
    """The same of the action."""
    embodiment_tag: str | None = None
    """The embodiment it was trained for; None where a policy knows of none."""
    embodiment_id: int | None = None
    """Slot of the per-embodiment projectors, None for a policy without."""
    quaternions: QuaternionOrder | None = None
    """In which order the state it was trained on has quaternions; None where it is not known."""

    @property
    def num_views(self) -> int:
        """Cameras used; 0 for a state policy."""
        return len(self.cameras)


@dataclass(frozen=True)
class StateRange:
    """Where the states of the demonstrations were, in physical units, on the CPU."""

    parts: tuple[tuple[str, int], ...]
    """Name and width of what the state is made of, in order."""
    low: Tensor
    """(D,)."""
    high: Tensor
    """(D,)."""

    def name(self, column: int) -> str:
        """`left_arm[2]`."""
        for part, width in self.parts:
            if column < width:
                return f"{part}[{column}]"
            column -= width
        raise IndexError(column)


class Policy(nn.Module, ABC):
    """What acts, is trained and is saved; it is called by the methods that `METHODS` names and has no `forward`."""

    METHODS: ClassVar[tuple[str, ...]] = (
        "encode",
        "act",
        "evaluate",
        "value",
        "decode",
        "propose",
        "propose_latent",
        "imitation_errors",
        "demonstrated",
    )
    """Methods that compute with the weights, from rows to rows: precision and fixed batch sizes wrap them.

    Where the policy is sharded, each of them, and `sft_loss`, is a forward method to FSDP2.
    """
    RL_PARTS: ClassVar[tuple[str, ...]] = ("value_head",)
    """Child modules that RL adds and that acting without exploration does not need."""
    spec: PolicySpec
    origin: Origin = Origin()
    """What it was made for, as its folder says."""
    state_range: StateRange | None = None
    """What was demonstrated; None where nothing was."""
    q_head: QHead | None
    """Critics of what it proposes, for learning from stored experience."""
    latent_head: QHead | None
    """Critics of what it draws its proposals from, which learn from those of the proposals; None without any."""
    proposal_width: int = 0
    """Numbers that a proposal draws, which the target entropy counts; 0 for a policy that makes none."""
    noise_width: int = 0
    """D of the noise that proposals are made from."""
    imitates: bool = False
    """Whether the actor imitates the best of `stored_candidates`, instead of climbing the critics."""
    capturable: tuple[str, ...] = ()
    """Methods, from tensors and numbers to tensors, that a GPU may replay as CUDA graphs where nothing is trained."""
    acts_as_it_learns: bool = False
    """Whether acting runs the very code that gradients are taken of, which, when compiled, rounds in other places than
    code without gradients: a policy that heeds it acts with densities that `evaluate` repeats."""
    product_layers: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv2d)
    """Layers whose weights are used in matrix products alone, so that autocast casts them."""

    def __init__(self) -> None:
        super().__init__()
        self.q_head = None
        self.latent_head = None

    @property
    def offers(self) -> frozenset[str]:
        """What an algorithm may ask for.

        `log_prob`, `value`, `entropy` in closed form, `q_head` with proposals, and `imitation` of `stored_actions`.
        """
        return frozenset({"log_prob", "value"})

    @abstractmethod
    def prepare(self, observation: Observation) -> TensorDict:
        """Turn an observation into plain tensors (images, token ids, normalised state); no weights involved.

        They outlast the observation, whose images are views of memory that the simulator writes over: copy those.
        """

    @abstractmethod
    def encode(self, inputs: TensorDict) -> TensorDict:
        """Features of what `prepare` returned: the part that RL may freeze and cache."""

    @abstractmethod
    def act(self, features: TensorDict, noise: Noise, deterministic: bool = False) -> Action:
        """Decide for B rows of features."""

    @abstractmethod
    def evaluate(self, features: TensorDict, trace: TensorDict) -> Evaluation:
        """Look at stored decisions with the present weights; differentiable."""

    @abstractmethod
    def value(self, features: TensorDict) -> Tensor:
        """Values (B,) float32, differentiable."""

    @abstractmethod
    def decode(self, features: TensorDict, initial_noise: Tensor) -> Tensor:
        """Deterministic actions (B, T, A) from initial noise (B, ...), differentiable."""

    def propose(self, features: TensorDict, trace: TensorDict, noise: Tensor) -> Proposal:
        """What the actor that critics improve would do on B rows, with the present weights; differentiable.

        Args:
            features: Of the rows.
            trace: Of the decisions taken there.
            noise: (B, D), standard normal.
        """
        raise NotImplementedError(f"{type(self).__name__} makes no proposals")

    def propose_latent(self, features: TensorDict, noise: Tensor) -> Proposal:
        """As `propose`, but its `actions` are what the proposal is made from, as `latent_head` reads it."""
        raise NotImplementedError(f"{type(self).__name__} has no latents")

    def imitation_errors(self, features: TensorDict, actions: Tensor, noise: Tensor) -> Tensor:
        """Losses (B,) of imitating actions (B, A), as `stored_candidates` has them; differentiable.

        Args:
            features: Of the rows.
            actions: What is imitated, in the units of `stored_candidates` and `stored_actions`.
            noise: (B, R, D), standard normal: R draws for each row, over which its loss is the mean.
        """
        raise NotImplementedError(f"{type(self).__name__} imitates nothing")

    def stored_candidates(self, trace: TensorDict) -> Tensor:
        """(B, N, A), what might have been done instead, the policy's own first, as critics read it."""
        raise NotImplementedError(f"{type(self).__name__} chooses among no candidates")

    def demonstrated(self, features: TensorDict, actions: Tensor, noise: Noise) -> TensorDict:
        """The trace of decisions in which actions (B, T, A), in physical units, were done that it did not choose.

        Raises:
            UserError: It cannot learn from them.
        """
        raise UserError(
            f"{type(self).__name__} does not learn from stored demonstrations",
            key="algorithm.demo_buffer",
            expected="null with this policy",
            fix="set algorithm.demo_buffer=null",
        )

    def stored_actions(self, trace: TensorDict) -> Tensor:
        """(B, D), what was done, as `propose` gives it."""
        return trace["actions"].flatten(1)

    def stored_pairs(self, trace: TensorDict) -> tuple[Tensor, Tensor]:
        """N latents (B, N, L) of each row, as `latent_head` reads them, and the actions (B, N, D) made from them."""
        raise NotImplementedError(f"{type(self).__name__} has no latents")

    def wrap_methods(self, around: Callable[..., Any]) -> None:
        """Put a function around each of `METHODS`, of this policy and its copies; the last one put is the outermost.

        Args:
            around: Called with the name of the method, the method, and the arguments of the call.
        """
        for name in self.METHODS:
            setattr(self, name, MethodType(_wrapped(name, getattr(self, name).__func__, around), self))

    @property
    def schedule(self) -> tuple[float | Tensor, ...]:
        """Numbers that `begin_update` sets; by default there are none.

        A recorded computation has scalars () of them, to read them anew.
        """
        return ()

    @schedule.setter
    def schedule(self, numbers: tuple[float | Tensor, ...]) -> None:
        assert not numbers, f"{type(self).__name__} has no schedule"

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
        features = self.encode(self.prepare(observation).to(device))
        return self.act(features, noise, deterministic=True).actions

    @abstractmethod
    def trainable(self, part: str) -> Sequence[tuple[str, nn.Parameter]]:
        """Named parameters of a part: `head` (all after the features), `value_head`, `backbone`, or `all`.

        Where the policy offers `q_head`, also that, `latent_head`, and `proposal`, what `propose` computes with.
        """

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

    def stacks(self) -> Sequence[Sequence[nn.Module]]:
        """Layers with most of the weights: stacks whose layers run one after the other; by default there are none.

        Where the policy is sharded, so is each of them by itself: it is called as a module, uses its own weights only,
        and what it computes with gradients comes in and goes out as arguments and results.
        """
        return ()

    def methods_to_recompute(self) -> Sequence[tuple[nn.Module, str]]:
        """Methods of modules whose activations may be computed again for gradients: without effects but the result."""
        return [(layer, "forward") for stack in self.stacks() for layer in stack]

    def published_state(self) -> dict[str, Tensor]:
        """Tensors of a model folder: `state_dict`, with adapters merged into the weights they adapt."""
        return self.state_dict()

    def own_names(self, weights: Mapping[str, Tensor], file: Path) -> dict[str, Tensor]:
        """Weights of this model that another tool wrote to `file`, by this policy's names; by default as they are."""
        del file
        return dict(weights)

    @abstractmethod
    def sft_loss(self, features: TensorDict, actions: Tensor, valid: Tensor, noise: Noise, repeats: int = 1) -> Tensor:
        """Loss of imitating demonstrated actions, a scalar: a mean over all valid steps.

        Args:
            features: What `encode` gave, B rows.
            actions: (B, H, A) in physical units, H the policy's action horizon.
            valid: (B, H) bool, False past the end of the demonstration.
            noise: Random numbers of the B rows.
            repeats: Draws of noise for each row, for a policy whose loss is an expectation over noise.
        """

    def check_instructions(self, instructions: Sequence[str]) -> None:
        """Check that the model has room for these words; by default it reads none.

        Raises:
            UserError: It has not.
        """

    def inputs_unlike(self, folder: Path) -> list[str]:
        """What of the preparation of inputs differs in a folder of this model; by default nothing is prepared."""
        return []

    def describe_inputs(self) -> str | None:
        """A line about what the model reads and writes, by its own names; by default there are none."""
        return None

    def stored_bytes(self, *, recomputes: bool) -> int | None:
        """Bytes that a rollout stores of what a decision was taken on; None, the default, where they are few.

        Args:
            recomputes: Whether what features are computed from is stored, instead of the features.
        """
        return None

    @property
    def actor_file(self) -> str:
        """What a model folder has where an actor beside the published weights learned; by default nothing is so."""
        return ""

    def student(self) -> Policy | None:
        """A copy that acts by its published weights alone, for `regrasp distill`; None where this one does so."""
        return None

    def write_folder(self, folder: Path) -> None:
        """Write the policy, what it was made for, and a card that says so."""
        from regrasp.models.card import write_card

        self.save(folder)
        self.origin.save(folder)
        write_card(folder)

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write a self-contained Hugging Face style folder (config.json, model.safetensors, processor files)."""


def _wrapped(name: str, inner: Callable[..., Any], around: Callable[..., Any]) -> Callable[..., Any]:
    """A function of a policy: it holds none, so that a copy of a policy calls itself."""

    @wraps(inner)
    def method(self: Policy, *arguments: Any, **named: Any) -> Any:
        return around(name, MethodType(inner, self), *arguments, **named)

    return method
