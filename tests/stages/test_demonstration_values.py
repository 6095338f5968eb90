"""Demonstrations whose values cannot be what was meant: images, and actions that normalisation loses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from regrasp.envs.data_config import DataConfig, KeyConfig
from regrasp.errors import UserError
from regrasp.models.groot.processing.selection import check_ways_back
from regrasp.stages.camera_checks import CameraChecks

CAMERA = "observation.images.main"


def images(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (5, 4, 4, 3), np.uint8)


def test_odd_images_are_counted() -> None:
    checks, episodes = CameraChecks(), [images(seed) for seed in range(4)]
    episodes[1][0] = episodes[0][-1]
    episodes[2][1:3] = 0
    episodes[3][2] = (9, 9, 9)
    for episode in episodes:
        checks.add({CAMERA: episode, "action": np.zeros((5, 2))})
    black, constant, late = checks.warnings()
    assert black == f"2 of 20 images of {CAMERA} are wholly black."
    assert constant == f"1 of 20 images of {CAMERA} are of one colour."
    assert late.startswith(f"1 of 4 episodes begin, in {CAMERA}, with the last image of the episode before")


def test_ordinary_images_are_not_warned_of() -> None:
    checks = CameraChecks()
    for seed in range(3):
        checks.add({CAMERA: images(seed)})
    assert checks.warnings() == []


GRIPPER = torch.arange(200) % 40 < 20


@pytest.mark.parametrize(
    ("mode", "gripper"),
    [
        ("binary", GRIPPER * 2.0 - 1),
        ("binary", GRIPPER * 0.4),
        ("q99", (torch.arange(500) == 7) * 1.0),
    ],
)
def test_actions_that_are_lost_are_refused(mode, gripper: torch.Tensor) -> None:
    data = DataConfig(("front",), (KeyConfig("hand"),), (KeyConfig("hand", mode),))
    with pytest.raises(UserError) as caught:
        check_ways_back(data, {}, gripper[:, None], "The recordings")
    assert f"(hand, mode {mode})" in str(caught.value.key)


@pytest.mark.parametrize(
    ("mode", "values"),
    [
        ("binary", GRIPPER.float()),
        ("q99", torch.linspace(-1, 1, 200)),
        ("min_max", GRIPPER * 2.0 - 1),
        ("mean_std", torch.full((20,), 0.3)),
        ("none", torch.linspace(-1, 1, 200)),
    ],
)
def test_actions_that_come_back_are_taken(mode, values: torch.Tensor) -> None:
    data = DataConfig(("front",), (KeyConfig("hand"),), (KeyConfig("hand", mode),))
    check_ways_back(data, {}, values[:, None], "The recordings")
