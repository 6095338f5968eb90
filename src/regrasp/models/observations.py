"""How a policy asks for its part of an observation, by name, and whether a user's observation has it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from regrasp.envs.contract import STATE, Observation, numbered_cameras
from regrasp.errors import UserError

_EXPECTED = {"images": "(B, H, W, 3) uint8", "state": "(B, D) float32"}


def images_of(observation: Observation, names: Sequence[str]) -> list[Tensor]:
    """The images (B, H, W, 3) of the cameras `names`, in that order; numbered cameras are taken as they come.

    Raises:
        UserError: A camera is missing or nothing that was asked for, or has no such images.
    """
    found, numbered = observation.images, numbered_cameras(len(names))
    asked = numbered if found.keys() == set(numbered) else names
    missing, unknown = [name for name in asked if name not in found], [name for name in found if name not in asked]
    if missing or unknown:
        raise _other_names("cameras", "images", missing, unknown, names)
    for name in asked:
        images = found[name]
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[-1] != 3 or min(images.shape[1:]) < 2:
            layout = f"{tuple(images.shape)} {str(images.dtype).removeprefix('torch.')}"
            raise UserError(
                "Images of the wrong size or type",
                key=f"images.{name}",
                value=layout,
                expected=_EXPECTED["images"],
                fix="give pixels from 0 to 255, colours last, and a first dimension for the environments: image[None]"
                " is a batch of one",
            )
    return [found[name] for name in asked]


def state_of(observation: Observation, widths: Mapping[str, int]) -> Tensor:
    """The state (B, D) of these parts, side by side; where nothing names parts, the whole vector as it comes.

    Raises:
        UserError: A part is missing, or of another width.
    """
    found = observation.state
    asked = {STATE: sum(widths.values())} if found.keys() == {STATE} else widths
    if missing := [name for name in asked if name not in found]:
        unknown = [name for name in found if name not in asked]
        raise _other_names("parts of the state", "state", missing, unknown, asked)
    for name, width in asked.items():
        if found[name].ndim != 2 or found[name].shape[1] != width:
            raise UserError(
                "A state of another width than the policy was trained with",
                key=f"state.{name}",
                value=tuple(found[name].shape),
                expected=f"(B, {width})",
                fix="give a row for each environment; compare the mapping's `states` with the one the base model was"
                " trained with",
            )
    parts = [found[name] for name in asked]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _other_names(what: str, key: str, missing: list[str], unknown: list[str], known: Iterable[str]) -> UserError:
    lists = (("missing", missing), ("unknown", unknown))
    return UserError(
        f"An observation with other {what} than the policy was trained with",
        key=key,
        value="; ".join(f"{label}: {', '.join(names)}" for label, names in lists if names),
        expected=", ".join(known),
        fix=f"name `{key}` as the policy's training did",
    )


def check_observation(observation: Observation, *, uses_images: bool) -> None:
    """Check that images and state are tensors by name, and every state a number; names are the policy's own business.

    Args:
        observation: B environments.
        uses_images: Whether the policy looks at images; otherwise they may be anything.

    Raises:
        UserError: Names the part of the observation, what was found and what was expected.
    """
    texts = observation.instruction
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise UserError(
            "Instructions that are no list of texts",
            key="instruction",
            value=texts,
            expected="a list of texts, one for each environment",
            fix="put a single instruction into a list: instruction=['pick up the red cube']",
        )
    for part in ("images", "state") if uses_images else ("state",):
        found = getattr(observation, part)
        if not isinstance(found, Mapping):
            raise _no_tensor(part, found, f"a dict of torch tensors {_EXPECTED[part]} by name")
        for name, values in found.items():
            if not isinstance(values, Tensor):
                raise _no_tensor(f"{part}.{name}", values, f"a torch tensor {_EXPECTED[part]}")
    for name, values in observation.state.items():
        if wrong := torch.nonzero(~values.isfinite()).tolist():
            raise UserError(
                f"State values that are not finite: {len(wrong)}",
                key=f"state.{name}{wrong[0]}",
                value=values[tuple(wrong[0])].item(),
                expected="a finite number",
                fix="look at where the observation comes from: a simulator or sensor that fails gives such values",
            )


def _no_tensor(key: str, found: Any, expected: str) -> UserError:
    return UserError(
        "The policy needs a part of the observation that is missing or of the wrong type",
        key=key,
        value=None if found is None else _described(found),
        expected=expected,
        fix="torch.from_numpy turns a NumPy array into a tensor, torch.tensor a list",
    )


def _described(found: Any) -> str:
    """`numpy.ndarray (1, 84, 84, 3) uint8`."""
    kind = type(found)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    return " ".join([name, *(str(getattr(found, part)) for part in ("shape", "dtype") if hasattr(found, part))])
