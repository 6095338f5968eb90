"""Ways of learning from critics that train the flow head itself, so that a plain GR00T comes out.

SAC-Flow (arXiv:2509.25756): a chunk is a rollout of the noise-augmented flow, whose density is known, and critics'
gradients go through its denoising steps. Selection: critics choose among candidates of a chunk, and the head imitates
the chosen one by flow matching (PA-RL, arXiv:2412.06685; EXPO, arXiv:2507.07986).
"""

from __future__ import annotations

import math

import torch
from tensordict import TensorDict
from torch import Tensor

from regrasp.device import send
from regrasp.models.contract import Noise
from regrasp.models.groot.residual import with_slow_offsets
from regrasp.models.groot.selection_config import SelectionConfig
from regrasp.models.groot.steering import ACTIONS, DECISION, Flow, Sizes, Steering
from regrasp.models.proposals import Proposal
from regrasp.models.q_head import QHead

CANDIDATES = "candidates"
"""In the trace: chunks (B, N, T * A) in normalised units, the head's own first."""


class FlowActor(Steering):
    """The head as a stochastic policy: all denoising steps have the noise of `rl_head_config`.

    Args:
        sizes: Of what it decides.
        num_steps: K.
    """

    TITLE = "its own head"
    trains_head = True

    def __init__(self, sizes: Sizes, num_steps: int) -> None:
        super().__init__()
        self._noise, self._num_steps = sizes.noise, num_steps
        self.width = self.action_width = math.prod(sizes.chunk)
        self.noise_width = (1 + num_steps) * math.prod(sizes.noise)

    def act(
        self, features: TensorDict, noise: Noise, flow: Flow, *, deterministic: bool, critics: QHead | None
    ) -> TensorDict:
        """The chunk that is denoised, with noise on the way in training."""
        del critics
        device = features["state"].device
        initial = send(noise.normal("initial", *self._noise), device)
        if deterministic:
            chunk = flow.denoise(features, initial)
        else:
            chunk, _ = flow.sample(features, initial, send(noise.normal("step", self._num_steps, *self._noise), device))
        return TensorDict({ACTIONS: chunk}, batch_size=[len(chunk)])

    def propose(self, features: TensorDict, trace: TensorDict, noise: Tensor, flow: Flow) -> Proposal:
        """A chunk of fresh noise, with the log-density of all that was drawn for it."""
        del trace
        drawn = noise.unflatten(1, (1 + self._num_steps, *self._noise))
        chunk, log_probs = flow.sample(features, drawn[:, 0], drawn[:, 1:])
        return Proposal(chunk, log_probs)


class SelectionActor(Steering):
    """The head, which imitates what critics choose among its own chunk and ones with slow random offsets.

    Args:
        config: Candidates and exploration.
        sizes: Of what it decides.
    """

    TITLE = "its own head"
    trains_head = True
    imitates = True

    def __init__(self, config: SelectionConfig, sizes: Sizes) -> None:
        super().__init__()
        self.config = config
        self._chunk, self._noise = sizes.chunk, sizes.noise
        self.width = self.action_width = math.prod(sizes.chunk)
        self.noise_width = math.prod(sizes.noise) + 1

    def act(
        self, features: TensorDict, noise: Noise, flow: Flow, *, deterministic: bool, critics: QHead | None
    ) -> TensorDict:
        """The head's own chunk, or in training the candidate that critics choose."""
        device, config = features["state"].device, self.config
        base = flow.denoise(features, send(noise.normal("initial", *self._noise), device))
        if deterministic:
            return TensorDict({ACTIONS: base}, batch_size=[len(base)])
        width = config.components * self._chunk[1]
        drawn = send(noise.normal("offsets", config.candidates, width), device)
        offsets = 2 * torch.special.ndtr(drawn) - 1
        repeated = base.repeat_interleave(config.candidates, 0)
        edited = with_slow_offsets(repeated, offsets.flatten(0, 1), self._chunk, config.scale)
        candidates = torch.cat([base[:, None], edited.unflatten(0, (len(base), -1))], dim=1)
        chosen = self._chosen(features, candidates, noise, critics)
        done = candidates[torch.arange(len(base), device=device), chosen]
        return TensorDict({ACTIONS: done, CANDIDATES: candidates}, batch_size=[len(base)])

    def _chosen(self, features: TensorDict, candidates: Tensor, noise: Noise, critics: QHead | None) -> Tensor:
        """(B,) int64, the candidate that is executed."""
        config, (batch, count) = self.config, candidates.shape[:2]
        device = candidates.device
        if self.update < config.base_updates or critics is None:
            return torch.zeros(batch, dtype=torch.long, device=device)
        at_random = send(noise.integers("chosen", count), device)
        if self.update < config.base_updates + config.random_updates:
            return at_random
        seen = critics.read(features, TensorDict({}, batch_size=[batch]), features[DECISION])
        values = critics.judge(seen.repeat_interleave(count, 0), candidates.flatten(0, 1)).amin(0)
        explores = torch.special.ndtr(send(noise.normal("explores", 1), device)).squeeze(1) < config.random_share
        return torch.where(explores, at_random, values.unflatten(0, (batch, count)).argmax(1))

    def propose(self, features: TensorDict, trace: TensorDict, noise: Tensor, flow: Flow) -> Proposal:
        """The head's own chunk, of which no density is known."""
        del trace
        chunk = flow.denoise(features, noise[:, :-1].unflatten(1, self._noise))
        return Proposal(chunk, torch.zeros_like(chunk[:, 0]))

    def demonstrated(self, trace: TensorDict, chunk: Tensor) -> TensorDict:
        """Also: the demonstrated chunk is among the candidates, in the last one's place."""
        trace[CANDIDATES][:, -1] = chunk
        return super().demonstrated(trace, chunk)

    def stored_candidates(self, trace: TensorDict) -> Tensor:
        """What was chosen from."""
        return trace[CANDIDATES]
