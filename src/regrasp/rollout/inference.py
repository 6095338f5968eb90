"""Inference: a policy decides on observations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from tensordict import TensorDict
from torch import Tensor

from regrasp.device import send
from regrasp.envs.contract import Observation
from regrasp.models.contract import Action, Policy
from regrasp.rollout.episodes import NoiseKey
from regrasp.rollout.state_watch import StateWatch
from regrasp.seeding import KeyedNoise, Role

_CPU_BLOCK = 32
_CPU_THREADS = 2


@dataclass
class Decision:
    """Actions for B environments and what the update needs of them."""

    inputs: TensorDict
    action: Action


class Inference:
    """Runs the policy on observations.

    Args:
        policy: The policy; its weights are shared with the actor when both live in one process.
        seed: Noise is drawn from (seed, role, key).
        role: "train", "eval" or "data".
        device: Where the policy lives.
        keep_features: Keep backbone features for the update, rather than prepared observations.
        watch: Sees every state that is decided on.
    """

    def __init__(
        self,
        policy: Policy,
        seed: int,
        role: Role,
        *,
        device: torch.device,
        keep_features: bool,
        watch: StateWatch | None = None,
    ) -> None:
        self._policy = policy
        self._seed = seed
        self._role: Role = role
        self._device = device
        self._keep_features = keep_features
        self._watch = watch
        self.version = 0

    @torch.no_grad()
    def decide(self, observation: Observation, keys: Sequence[NoiseKey], *, deterministic: bool = False) -> Decision:
        """Actions for every row of `observation`; `keys` name the noise of each row."""
        self._look(observation)
        return self._decide(observation, keys, deterministic)

    def _look(self, observation: Observation) -> None:
        if self._watch is not None:
            self._watch.see(self._policy, observation)

    def _decide(self, observation: Observation, keys: Sequence[NoiseKey], deterministic: bool) -> Decision:
        inputs = self._policy.prepare(moved(observation, self._device))
        features = self._policy.encode(inputs)
        if self._policy.q_head is not None:
            numbers = torch.tensor([number for *_, number in keys])
            features["decision"] = send(numbers, self._device)
        noise = KeyedNoise(self._seed, self._role, keys)
        action = self._policy.act(features, noise, deterministic=deterministic)
        return Decision(features if self._keep_features else inputs.clone(), action)

    @torch.no_grad()
    def values(self, observation: Observation) -> Tensor:
        """Values (B,) of observations."""
        inputs = self._policy.prepare(moved(observation, self._device))
        return self._policy.value(self._policy.encode(inputs))

    @torch.no_grad()
    def act_in_blocks(self, observation: Observation, keys: Sequence[NoiseKey], block: int) -> Tensor:
        """Deterministic actions (B, T, A), inferred in blocks of `block` rows, on a CPU of a multiple of 32.

        Floating-point results depend on the batch shape, so the last block is padded with its first row: a row's
        action then depends on that row alone.
        """
        self._look(observation)
        block = block_size(block, self._device)
        pieces = []
        with _even_shares(self._device):
            for start in range(0, len(observation), block):
                rows = list(range(start, min(start + block, len(observation))))
                padded = rows + [rows[0]] * (block - len(rows))
                decision = self._decide(observation.rows(padded), [keys[i] for i in padded], deterministic=True)
                pieces.append(decision.action.actions[: len(rows)])
        return torch.cat(pieces).cpu()


def block_size(block: int, device: torch.device) -> int:
    """Rows that `act_in_blocks` infers at once, when asked for blocks of `block`."""
    return -(-block // _CPU_BLOCK) * _CPU_BLOCK if device.type == "cpu" else block


def moved(observation: Observation, device: torch.device) -> Observation:
    """The observation on the policy's device, where its images are then prepared."""
    return observation if device.type == "cpu" else observation.map(lambda values: send(values, device))


@contextmanager
def _even_shares(device: torch.device) -> Iterator[None]:
    """Limit torch's CPU threads to two.

    Each thread runs vector instructions over its share of a tensor and scalar ones, which round differently, over the
    rest. One share, or two equal ones, of a block of 32 rows leave no rest; three or more threads do, at places that
    make a row's result depend on where in the block it stands.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads <= _CPU_THREADS:
        yield
        return
    torch.set_num_threads(_CPU_THREADS)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
