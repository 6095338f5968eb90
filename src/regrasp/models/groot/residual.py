"""A small actor that adds a slow offset to the chunk of a frozen policy, and explores with it.

Large, slow corrections are what a flow policy lacks that was trained on few demonstrations, and what its own noise does
not reach. Residuals on chunks that stored experience trains: ResFiT (arXiv:2509.19301), Policy Decorator
(arXiv:2412.13630), PLD (arXiv:2511.00091).
"""

from __future__ import annotations

import math

import torch
from tensordict import TensorDict
from torch import Tensor

from regrasp.device import send
from regrasp.models.contract import Noise
from regrasp.models.groot.residual_config import ResidualConfig
from regrasp.models.groot.steering import ACTIONS, DECISION, Flow, Sizes, Steering
from regrasp.models.proposals import Proposal, actor_mlp, init_actor_mlp, squashed
from regrasp.models.q_head import AttentionReader, QHead

BASE = "base"
"""In the trace: the frozen policy's own chunk (B, T * A), in normalised units."""


class Residual(Steering):
    """Offsets c (B, D) in [-1, 1] of the slow components of every action dimension.

    Args:
        config: Sizes and exploration.
        sizes: Of what it sees and decides.
    """

    FILE = "residual.json"
    TITLE = "a residual"

    def __init__(self, config: ResidualConfig, sizes: Sizes) -> None:
        super().__init__()
        self.config = config
        self._chunk, self._noise = sizes.chunk, sizes.noise
        length, width = sizes.chunk
        self.width = self.noise_width = config.components * width
        self.action_width = length * width
        self.parts_read = ((BASE, length * width),)
        self.reader = AttentionReader(sizes.context, sizes.state, self.parts_read)
        self.body = actor_mlp((self.reader.width, *config.hidden, self.width))

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw fresh weights; the offset is 0 at first."""
        self.reader.reset_parameters(generator)
        init_actor_mlp(self.body, generator)

    def mean(self, features: TensorDict, base: Tensor) -> Tensor:
        """Offsets (B, D) before the tanh."""
        seen = self.reader(features, TensorDict({BASE: base}, batch_size=[len(base)]))
        return self.body(seen).float()

    def add(self, base: Tensor, offsets: Tensor) -> Tensor:
        """The executed chunk (B, T * A) from the frozen policy's and offsets (B, D), both in normalised units.

        The sum stays within [-1, 1] as far as the frozen policy's chunk does.
        """
        return with_slow_offsets(base, offsets, self._chunk, self.config.scale)

    def act(
        self, features: TensorDict, noise: Noise, flow: Flow, *, deterministic: bool, critics: QHead | None
    ) -> TensorDict:
        """The frozen policy's chunk from noise of its own, and what is executed instead."""
        base = flow.denoise(features, send(noise.normal("initial", *self._noise), features["state"].device))
        done = self.decide(features, base) if deterministic else self.explore(features, base, noise, critics)
        return TensorDict({BASE: base, ACTIONS: done}, batch_size=[len(base)])

    def propose(self, features: TensorDict, trace: TensorDict, noise: Tensor, flow: Flow) -> Proposal:
        """The chunk that was denoised, with the offset that the residual now gives it."""
        del flow
        base = trace[BASE]
        mean = self.mean(features, base)
        log_std = torch.full_like(mean, math.log(self.config.std))
        offsets, log_probs = squashed(mean, log_std, noise)
        return Proposal(self.add(base, offsets), log_probs, offsets.square().mean(-1))

    def decide(self, features: TensorDict, base: Tensor) -> Tensor:
        """The executed chunk (B, T * A) without exploration."""
        return self.add(base, self.mean(features, base).tanh())

    def explore(self, features: TensorDict, base: Tensor, noise: Noise, critics: QHead | None) -> Tensor:
        """The executed chunk (B, T * A) of training: the frozen policy's, a random one, then the actor's with noise."""
        config = self.config
        if self.update < config.base_updates:
            return base
        drift = send(noise.of_episode().normal("drift", self.width), base.device)
        if self.update < config.base_updates + config.random_updates:
            fresh = send(noise.normal("offsets", self.width), base.device)
            stays = send(noise.of_episode().normal("stays", 1), base.device) > 0
            offsets = torch.special.ndtr(torch.where(stays, drift, fresh)) * 2 - 1
            return self.add(base, config.random_range * offsets)
        mean = self.mean(features, base)
        count = max(config.candidates, 1)
        fresh = send(noise.normal("offsets", count, self.width), base.device)
        noisy = (mean[:, None] + config.std * fresh + config.drift_std * drift[:, None]).tanh()
        if not config.candidates or critics is None:
            return self.add(base, noisy[:, 0])
        offsets = torch.cat([torch.zeros_like(mean)[:, None], mean.tanh()[:, None], noisy], dim=1)  # (B, C, D)
        number = offsets.shape[1]
        chunks = self.add(base.repeat_interleave(number, 0), offsets.flatten(0, 1)).unflatten(0, (-1, number))
        seen = critics.read(features, TensorDict({BASE: base}, batch_size=[len(base)]), features[DECISION])
        values = critics.judge(seen.repeat_interleave(number, 0), chunks.flatten(0, 1)).amin(0)
        best = values.unflatten(0, (-1, number)).argmax(1)
        return chunks[torch.arange(len(base), device=base.device), best]


def with_slow_offsets(base: Tensor, offsets: Tensor, chunk: tuple[int, int], scale: tuple[float, ...]) -> Tensor:
    """Add slow cosines over a chunk, see `Residual.add`.

    Args:
        base: (B, T * A).
        offsets: (B, components * A), in [-1, 1].
        chunk: T and A.
        scale: Of the constant component, one for all dimensions of the action or one for each.
    """
    length, width = chunk
    largest = scale * width if len(scale) == 1 else scale
    time = (torch.arange(length, device=base.device) + 0.5) * (math.pi / length)
    components = offsets.unflatten(1, (-1, width))
    number = torch.arange(components.shape[1], device=base.device)
    basis = torch.cos(number[:, None] * time) / (number[:, None] + 1)  # (components, T)
    scaled = torch.stack([part * most for part, most in zip(components.unbind(-1), largest, strict=True)], dim=-1)
    added = torch.einsum("bca,ct->bta", scaled, basis).flatten(1)
    within = base.clamp(-1, 1)
    return base + ((within + added).clamp(-1, 1) - within)
