"""The part of a GR00T policy that soft actor-critic adds: an actor beside the flow head, and critics."""

from __future__ import annotations

from tensordict import TensorDict
from torch import Tensor

from regrasp.models.contract import Policy
from regrasp.models.groot.dsrl_config import DsrlConfig
from regrasp.models.groot.noise_actor import NoiseActor
from regrasp.models.groot.residual import Residual
from regrasp.models.groot.residual_config import ResidualConfig
from regrasp.models.groot.settings import GrootModelConfig
from regrasp.models.groot.steering import Sizes, Steering
from regrasp.models.proposals import Proposal
from regrasp.models.q_head import AttentionReader, QHead


class SteeredPolicy(Policy):
    """A flow policy that may have an actor beside its head, see `steering.Steering`."""

    residual: Residual | None
    noise_actor: NoiseActor | None

    def _add_steering(
        self, config: ResidualConfig | DsrlConfig | None, settings: GrootModelConfig, sizes: Sizes
    ) -> None:
        self.residual = Residual(config, sizes) if isinstance(config, ResidualConfig) else None
        self.noise_actor = NoiseActor(config, sizes) if isinstance(config, DsrlConfig) else None
        steering = self.steering
        if steering is None:
            return
        self.proposal_width = steering.width
        if settings.add_q_head:
            reader = AttentionReader(sizes.context, sizes.state, steering.read)
            self.q_head = QHead(reader, steering.action_width, settings.q_head)
            if steering.latent_width is not None:
                reader = AttentionReader(sizes.context, sizes.state)
                self.latent_head = QHead(reader, steering.latent_width, settings.q_head)

    @property
    def steering(self) -> Steering | None:
        """What decides its chunks beside the head; None where nothing does."""
        return self.residual if self.noise_actor is None else self.noise_actor

    @property
    def _steering(self) -> Steering:
        assert self.steering is not None, "only an actor beside the head makes proposals"
        return self.steering

    def _denoise(self, features: TensorDict, initial_noise: Tensor) -> Tensor:
        """See `steering.Denoise`."""
        raise NotImplementedError

    def propose(self, features: TensorDict, trace: TensorDict, noise: Tensor) -> Proposal:
        """See `Policy.propose`; of the actor beside the head."""
        return self._steering.propose(features, trace, noise, self._denoise)

    def propose_latent(self, features: TensorDict, noise: Tensor) -> Proposal:
        """See `Policy.propose_latent`."""
        return self._steering.propose_latent(features, noise)

    def stored_actions(self, trace: TensorDict) -> Tensor:
        """See `Policy.stored_actions`."""
        return self._steering.stored_actions(trace)

    def stored_pairs(self, trace: TensorDict) -> tuple[Tensor, Tensor]:
        """See `Policy.stored_pairs`."""
        return self._steering.stored_pairs(trace)
