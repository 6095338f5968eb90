"""What soft actor-critic trains of a GR00T: an actor that decides its chunks together with the flow head."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

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


Denoise = Callable[[TensorDict, Tensor], Tensor]
"""From features and initial noise (B, *`Sizes.noise`) to the executed chunk (B, T * A) in normalised units."""


class Steering(nn.Module, ABC):
    """An actor beside a flow head that stays as it is."""

    FILE: ClassVar[str]
    """Of a model folder: its sizes."""
    TITLE: ClassVar[str]
    """What messages call it."""
    width: int
    """D, of what it draws for a decision."""
    read: tuple[tuple[str, int], ...] = ()
    """Names and widths of parts of the trace that critics of chunks read besides features and action."""
    action_width: int
    """Of an action as critics read it."""
    latent_width: int | None = None
    """Of what critics of latents read; None where there are none."""

    def __init__(self) -> None:
        super().__init__()
        self.update = 0
        """Updates that the run has made."""

    @abstractmethod
    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw fresh weights."""

    @abstractmethod
    def act(
        self, features: TensorDict, noise: Noise, denoise: Denoise, *, deterministic: bool, critics: QHead | None
    ) -> TensorDict:
        """The trace of a decision, `ACTIONS` among it.

        Args:
            features: B rows.
            noise: Random numbers of the rows.
            denoise: The flow.
            deterministic: Without exploration.
            critics: Of chunks, where training has them.
        """

    @abstractmethod
    def propose(self, features: TensorDict, trace: TensorDict, noise: Tensor, denoise: Denoise) -> Proposal:
        """See `Policy.propose`."""

    def propose_latent(self, features: TensorDict, noise: Tensor) -> Proposal:
        """See `Policy.propose_latent`."""
        raise NotImplementedError(f"{type(self).__name__} has no latents")

    def stored_actions(self, trace: TensorDict) -> Tensor:
        """See `Policy.stored_actions`."""
        return trace[ACTIONS]

    def stored_pairs(self, trace: TensorDict) -> tuple[Tensor, Tensor]:
        """See `Policy.stored_pairs`."""
        raise NotImplementedError(f"{type(self).__name__} has no latents")
