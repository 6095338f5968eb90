"""What soft actor-critic trains of a GR00T: an actor beside its flow head, or the head itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from regrasp.models.contract import Noise
from regrasp.models.proposals import Proposal
from regrasp.models.q_head import QHead

if TYPE_CHECKING:
    from regrasp.models.groot.config import ActionHeadConfig
    from regrasp.models.groot.settings import GrootModelConfig

ACTIONS = "actions"
"""In the trace: the executed chunk (B, T * A), in normalised units."""
DECISION = "decision"
"""Among the features, in training: the number (B,) of a decision within its episode."""


@dataclass(frozen=True)
class Sizes:
    """Widths of what an actor sees and decides."""

    context: int
    """Of a token."""
    state: int
    chunk: tuple[int, int]
    """T and A, executed actions and their width."""
    noise: tuple[int, int]
    """H and the width of the flow's actions, unused dimensions included."""

    @classmethod
    def of(cls, head: ActionHeadConfig, settings: GrootModelConfig) -> Sizes:
        """Those of a model."""
        chunk = (settings.num_action_chunks, settings.action_dim)
        return cls(head.backbone_embedding_dim, head.max_state_dim, chunk, (head.action_horizon, head.max_action_dim))


class Flow(Protocol):
    """What an actor asks of the flow head; chunks are the executed ones, (B, T * A), in normalised units."""

    def denoise(self, features: TensorDict, initial_noise: Tensor) -> Tensor:
        """The chunk of initial noise (B, *`Sizes.noise`), without further noise."""
        ...

    def sample(self, features: TensorDict, initial_noise: Tensor, step_noise: Tensor) -> tuple[Tensor, Tensor]:
        """A chunk with noise (B, K, *`Sizes.noise`) in all K denoising steps, and the chain's log-density (B,)."""
        ...


class Steering(nn.Module, ABC):
    """An actor that decides chunks, with a flow head that stays as it is or, with `trains_head`, as that head."""

    FILE: ClassVar[str] = ""
    """Of a model folder: its sizes; empty where acting needs nothing of it."""
    TITLE: ClassVar[str]
    """What messages call it."""
    trains_head: ClassVar[bool] = False
    """Whether it has no weights of its own, and the flow head learns."""
    imitates: ClassVar[bool] = False
    """See `Policy.imitates`."""
    width: int
    """D, of what it draws for a decision, which the target entropy counts."""
    noise_width: int
    """Of the noise that `propose` takes."""
    parts_read: tuple[tuple[str, int], ...] = ()
    """Names and widths of parts of the trace that critics of chunks read besides features and action."""
    action_width: int
    """Of an action as critics read it."""
    latent_width: int | None = None
    """Of what critics of latents read; None where there are none."""

    def __init__(self) -> None:
        super().__init__()
        self.update = 0
        """Updates that the run has made."""

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw fresh weights; by default there are none."""

    @abstractmethod
    def act(
        self, features: TensorDict, noise: Noise, flow: Flow, *, deterministic: bool, critics: QHead | None
    ) -> TensorDict:
        """The trace of a decision, `ACTIONS` among it.

        Args:
            features: B rows.
            noise: Random numbers of the rows.
            flow: The head.
            deterministic: Without exploration.
            critics: Of chunks, where training has them.
        """

    @abstractmethod
    def propose(self, features: TensorDict, trace: TensorDict, noise: Tensor, flow: Flow) -> Proposal:
        """See `Policy.propose`."""

    def propose_latent(self, features: TensorDict, noise: Tensor) -> Proposal:
        """See `Policy.propose_latent`."""
        raise NotImplementedError(f"{type(self).__name__} has no latents")

    def demonstrated(self, trace: TensorDict, chunk: Tensor) -> TensorDict:
        """The trace of a decision with another chunk (B, T * A) in the place of what was done."""
        return trace.set(ACTIONS, chunk)

    def stored_actions(self, trace: TensorDict) -> Tensor:
        """See `Policy.stored_actions`."""
        return trace[ACTIONS]

    def stored_pairs(self, trace: TensorDict) -> tuple[Tensor, Tensor]:
        """See `Policy.stored_pairs`."""
        raise NotImplementedError(f"{type(self).__name__} has no latents")

    def stored_candidates(self, trace: TensorDict) -> Tensor:
        """See `Policy.stored_candidates`."""
        raise NotImplementedError(f"{type(self).__name__} chooses among no candidates")
