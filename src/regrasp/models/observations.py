"""Whether an observation that a user put together is one that a policy can look at."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regrasp.envs.contract import Observation
from regrasp.errors import UserError

_IMAGES = "a torch tensor (B, H, W, 3) uint8"
_EXTRA_IMAGES = "a torch tensor (B, V, H, W, 3) uint8, or None"
_STATES = "a torch tensor (B, D) float32"


def check_observation(observation: Observation, *, uses_images: bool) -> None:
    """Check that images and states are tensors, and every state a number; sizes are the policy's own business.

    Args:
        observation: B environments.
        uses_images: Whether the policy looks at images; otherwise they may be anything.

    Raises:
        UserError: Names the field of the observation, what was found and what was expected.
    """
    if uses_images:
        _check_tensor("main_images", observation.main_images, _IMAGES)
        if observation.extra_view_images is not None:
            _check_tensor("extra_view_images", observation.extra_view_images, _EXTRA_IMAGES)
    _check_tensor("states", observation.states, _STATES)
    _check_finite(observation.states)


def _check_tensor(key: str, found: Any, expected: str) -> None:
    if found is None:
        raise UserError(
            "The policy needs a part of the observation that is None",
            key=key,
            value=None,
            expected=expected,
            mend=f"give the observation its {key}",
        )
    if not isinstance(found, Tensor):
        raise UserError(
            "A part of the observation is no torch tensor",
            key=key,
            value=_described(found),
            expected=expected,
            mend=f"torch.from_numpy turns a NumPy array into one, torch.tensor a list: {key}=torch.from_numpy(...)",
        )


def _check_finite(states: Tensor) -> None:
    wrong = torch.nonzero(~states.isfinite()).tolist()
    if wrong:
        raise UserError(
            f"State values that are not finite: {len(wrong)}",
            key=f"states{wrong[0]}",
            value=states[tuple(wrong[0])].item(),
            expected="a finite number",
            mend="look at where the observation comes from: a simulator or sensor that fails gives such values",
        )


def _described(found: Any) -> str:
    """`numpy.ndarray (1, 84, 84, 3) uint8`."""
    kind = type(found)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    return " ".join([name, *(str(getattr(found, part)) for part in ("shape", "dtype") if hasattr(found, part))])
