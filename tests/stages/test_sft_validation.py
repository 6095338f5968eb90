"""The validation loss of supervised training: computed in parts, and of all frames together."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from run_toys import groot_experiment
from tensordict import TensorDict
from torch import Tensor

from regrasp.models.contract import Noise
from regrasp.models.mlp.policy import MlpPolicy
from regrasp.seeding import KeyedNoise
from regrasp.stages.sft import Frames, validation_loss

NUM_FRAMES = 23


class NoisyMlp(MlpPolicy):
    """Its loss depends on the noise of each row, and it notes how many rows it is given."""

    def __init__(self) -> None:
        super().__init__(state_dim=3, action_dim=2, num_action_chunks=4, hidden=(8,), seed=1)
        self.batches: list[int] = []

    def sft_loss(self, features: TensorDict, actions: Tensor, valid: Tensor, noise: Noise, repeats: int = 1) -> Tensor:
        self.batches.append(len(actions))
        shifted = actions + noise.normal("flow", *actions.shape[1:])
        return super().sft_loss(features, shifted, valid, noise, repeats)


@pytest.fixture
def policy() -> NoisyMlp:
    return NoisyMlp()


@pytest.fixture
def frames() -> Frames:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(NUM_FRAMES, 3, generator=generator)
    valid = torch.arange(4) <= torch.randint(4, (NUM_FRAMES, 1), generator=generator)
    actions = torch.randn(NUM_FRAMES, 4, 2, generator=generator)
    return Frames(TensorDict({"state": states}, batch_size=[NUM_FRAMES]), actions, valid)


def loss(policy: NoisyMlp, frames: Frames, batch_size: int) -> float:
    sft = groot_experiment(f"sft.batch_size={batch_size}", "sft.noise_repeats=1").config.sft
    assert sft is not None
    return validation_loss(policy, frames, dataclasses.replace(sft, train="head"), 5, torch.device("cpu"))


@pytest.mark.parametrize("batch_size", [1, 7, 22])
def test_parts_give_the_loss_of_the_whole(policy: NoisyMlp, frames: Frames, batch_size: int) -> None:
    together = loss(policy, frames, NUM_FRAMES)
    assert policy.batches == [NUM_FRAMES]
    policy.batches.clear()
    assert loss(policy, frames, batch_size) == pytest.approx(together, rel=1e-5)
    assert max(policy.batches) == batch_size
    assert sum(policy.batches) == NUM_FRAMES


def test_it_is_the_mean_over_all_valid_steps(policy: NoisyMlp, frames: Frames) -> None:
    noise = KeyedNoise(5, "data", [(row, 1, 0) for row in range(NUM_FRAMES)]).normal("flow", 4, 2)
    with torch.no_grad():
        means = policy.actor(frames.inputs["state"]).unflatten(-1, (4, 2))
    errors = (means - frames.actions - noise)[frames.valid]
    assert loss(policy, frames, 7) == pytest.approx(float(errors.square().mean()), rel=1e-5)
