"""A small actor that chooses the initial noise of a frozen flow policy.

DSRL (arXiv:2506.15799): soft actor-critic on the noise. With noise aliasing, critics learn from executed chunks what a
chunk is worth, and critics of the noise learn from them what the chunk is worth that a noise denoises to.
"""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import Tensor

from regrasp.device import send
from regrasp.errors import UserError
from regrasp.models.contract import Noise
from regrasp.models.groot.dsrl_config import DsrlConfig
from regrasp.models.groot.steering import ACTIONS, Flow, Sizes, Steering
from regrasp.models.proposals import (
    Proposal,
    actor_mlp,
    bounded_log_std,
    init_actor_mlp,
    raw_log_std,
    squashed,
)
from regrasp.models.q_head import AttentionReader, QHead

LATENTS = "latents"
"""In the trace: noises (B, N, D) in units of the bound, that of the executed chunk first."""
CHUNKS = "chunks"
"""In the trace: what each of them denoises to, (B, N, T * A), in normalised units."""


class NoiseActor(Steering):
    """A squashed Gaussian over noise w (B, D), in units of its bound.

    Args:
        config: Sizes and exploration.
        sizes: Of what it sees and decides.
    """

    FILE = "dsrl.json"
    TITLE = "an actor of its noise"

    def __init__(self, config: DsrlConfig, sizes: Sizes) -> None:
        super().__init__()
        self.config = config
        self._noise = sizes.noise
        length, width = sizes.noise
        self.width = self.noise_width = width if config.is_shared else length * width
        executed, action_dim = sizes.chunk
        self.action_width = executed * action_dim if config.noise_aliasing else self.width
        self.latent_width = self.width if config.noise_aliasing else None
        self.reader = AttentionReader(sizes.context, sizes.state)
        self.body = actor_mlp((self.reader.width, *config.hidden, 2 * self.width))

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw fresh weights; the noise is about standard normal at first, as far as the bound lets it."""
        self.reader.reset_parameters(generator)
        init_actor_mlp(self.body, generator)
        with torch.no_grad():
            self.body[-1].bias[self.width :] = raw_log_std(1.0)  # pyright: ignore[reportIndexIssue]

    def distribution(self, features: TensorDict) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the standard deviation (B, D) before the tanh."""
        seen = self.reader(features, TensorDict({}, batch_size=features.batch_size))
        mean, raw = self.body(seen).float().chunk(2, dim=-1)
        return mean, bounded_log_std(raw)

    def initial(self, latent: Tensor) -> Tensor:
        """The flow's initial noise (B, H, A) of latents (B, D)."""
        length, width = self._noise
        vectors = latent.unflatten(1, (-1, width)) * self.config.bound
        return vectors.expand(-1, length, -1)

    def act(
        self, features: TensorDict, noise: Noise, flow: Flow, *, deterministic: bool, critics: QHead | None
    ) -> TensorDict:
        """The chunk that the chosen noise denoises to, and in training those of further noises."""
        del critics
        device, config = features["state"].device, self.config
        if deterministic:
            latents = [self.distribution(features)[0].tanh()]
        else:
            latents = [self._explored(features, send(noise.normal("latent", self.width), device))]
            if config.noise_aliasing:
                drawn = send(noise.normal("pairs", config.pairs, self.width), device)
                latents += self._clipped(drawn).unbind(1)
        chunks = torch.stack([flow.denoise(features, self.initial(latent)) for latent in latents], dim=1)
        table = {ACTIONS: chunks[:, 0], LATENTS: torch.stack(latents, dim=1), CHUNKS: chunks}
        return TensorDict(table, batch_size=[len(chunks)])

    def _explored(self, features: TensorDict, drawn: Tensor) -> Tensor:
        if self.update < self.config.base_updates:
            return self._clipped(drawn)
        return squashed(*self.distribution(features), drawn)[0]

    def _clipped(self, drawn: Tensor) -> Tensor:
        return (drawn / self.config.bound).clamp(-1, 1)

    def propose(self, features: TensorDict, trace: TensorDict, noise: Tensor, flow: Flow) -> Proposal:
        """What the drawn noise denoises to, or without noise aliasing that noise."""
        del trace
        proposal = self.propose_latent(features, noise)
        if self.config.noise_aliasing:
            proposal.actions = flow.denoise(features, self.initial(proposal.actions))
        return proposal

    def propose_latent(self, features: TensorDict, noise: Tensor) -> Proposal:
        """The drawn noise."""
        latent, log_probs = squashed(*self.distribution(features), noise)
        return Proposal(latent, log_probs, latent.square().mean(-1))

    def demonstrated(self, trace: TensorDict, chunk: Tensor) -> TensorDict:
        """Also: with noise aliasing alone, for nobody knows the noise of a demonstration."""
        if not self.config.noise_aliasing:
            raise UserError(
                "Critics of the noise cannot judge demonstrations",
                key="actor.model.dsrl.noise_aliasing",
                value=False,
                expected="true with algorithm.demo_buffer",
                fix="set it so, or algorithm.demo_buffer=null",
            )
        return super().demonstrated(trace, chunk)

    def stored_actions(self, trace: TensorDict) -> Tensor:
        """The executed chunk, or without noise aliasing its noise."""
        return trace[ACTIONS] if self.config.noise_aliasing else trace[LATENTS][:, 0]

    def stored_pairs(self, trace: TensorDict) -> tuple[Tensor, Tensor]:
        """Noises and what they denoise to."""
        return trace[LATENTS], trace[CHUNKS]
