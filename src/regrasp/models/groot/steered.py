"""How a GR00T learns without densities: an actor, see `steering.Steering`, and critics; or the head imitates."""

from __future__ import annotations

import math

import torch
from tensordict import TensorDict
from torch import Tensor

from regrasp.algorithms.flow import flow_matching_time
from regrasp.models.contract import Policy
from regrasp.models.groot.dsrl_config import DsrlConfig
from regrasp.models.groot.head_actors import FlowActor, SelectionActor
from regrasp.models.groot.noise_actor import NoiseActor
from regrasp.models.groot.residual import Residual
from regrasp.models.groot.residual_config import ResidualConfig
from regrasp.models.groot.selection_config import SelectionConfig
from regrasp.models.groot.settings import GrootModelConfig, SacFlowConfig, SteeringConfig
from regrasp.models.groot.steering import Sizes, Steering
from regrasp.models.proposals import Proposal
from regrasp.models.q_head import AttentionReader, QHead


class SteeredPolicy(Policy):
    """A flow policy that may have an actor beside its head, see `steering.Steering`."""

    residual: Residual | None
    noise_actor: NoiseActor | None
    head_actor: FlowActor | SelectionActor | None
    """Has no weights of its own."""

    def _add_steering(self, config: SteeringConfig | None, settings: GrootModelConfig, sizes: Sizes) -> None:
        self.residual = self.noise_actor = self.head_actor = None
        self._noise = sizes.noise
        match config:
            case ResidualConfig():
                self.residual = Residual(config, sizes)
            case DsrlConfig():
                self.noise_actor = NoiseActor(config, sizes)
            case SelectionConfig():
                self.head_actor = SelectionActor(config, sizes)
            case SacFlowConfig():
                self.head_actor = FlowActor(sizes, settings.denoising_steps)
            case None:
                self.noise_width = math.prod(sizes.noise) + 1
                return
        steering = self._steering
        self.proposal_width, self.noise_width = steering.width, steering.noise_width
        self.imitates = steering.imitates
        if settings.add_q_head:
            reader = AttentionReader(sizes.context, sizes.state, steering.parts_read)
            self.q_head = QHead(reader, steering.action_width, settings.q_head)
            if steering.latent_width is not None:
                reader = AttentionReader(sizes.context, sizes.state)
                self.latent_head = QHead(reader, steering.latent_width, settings.q_head)

    @property
    def steering(self) -> Steering | None:
        """What critics improve; None where nothing does."""
        return self.residual or self.noise_actor or self.head_actor

    @property
    def actor_file(self) -> str:
        """See `Policy.actor_file`."""
        return "" if self.steering is None else self.steering.FILE

    @property
    def _steering(self) -> Steering:
        assert self.steering is not None, "only an actor that critics improve makes proposals"
        return self.steering

    def denoise(self, features: TensorDict, initial_noise: Tensor) -> Tensor:
        """See `steering.Flow`."""
        raise NotImplementedError

    def sample(self, features: TensorDict, initial_noise: Tensor, step_noise: Tensor) -> tuple[Tensor, Tensor]:
        """See `steering.Flow`."""
        raise NotImplementedError

    def flow_errors(self, features: TensorDict, chunk: Tensor, initial_noise: Tensor, time: Tensor) -> Tensor:
        """Flow-matching errors (B,) of chunks (B, T * A), the mean over initial noise (B, R, ...) at times (B, R)."""
        raise NotImplementedError

    def propose(self, features: TensorDict, trace: TensorDict, noise: Tensor) -> Proposal:
        """See `Policy.propose`."""
        return self._steering.propose(features, trace, noise, self)

    def propose_latent(self, features: TensorDict, noise: Tensor) -> Proposal:
        """See `Policy.propose_latent`."""
        return self._steering.propose_latent(features, noise)

    def imitation_errors(self, features: TensorDict, actions: Tensor, noise: Tensor) -> Tensor:
        """Flow-matching errors (B,) of chunks (B, T * A); the last column of the noise draws the time."""
        if self.steering is not None and not self.imitates:
            raise NotImplementedError("only the head imitates")
        time = flow_matching_time(torch.special.ndtr(noise[..., -1]))
        return self.flow_errors(features, actions, noise[..., :-1].unflatten(2, self._noise), time)

    def stored_actions(self, trace: TensorDict) -> Tensor:
        """See `Policy.stored_actions`; without anything beside the head, what denoising came to."""
        if self.steering is None:
            return trace["chain"][:, -1, : self.spec.num_action_chunks, : self.spec.action_dim].flatten(1)
        return self.steering.stored_actions(trace)

    def stored_pairs(self, trace: TensorDict) -> tuple[Tensor, Tensor]:
        """See `Policy.stored_pairs`."""
        return self._steering.stored_pairs(trace)

    def stored_candidates(self, trace: TensorDict) -> Tensor:
        """See `Policy.stored_candidates`."""
        return self._steering.stored_candidates(trace)
