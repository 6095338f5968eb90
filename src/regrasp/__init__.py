"""Regrasp: fine-tune pretrained vision-language-action policies with reinforcement learning in simulation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from regrasp.models.contract import Policy
    from regrasp.models.inputs import InputNames

__version__ = "0.1.0"
__all__ = ["__version__", "load_policy"]


def load_policy(path: str | Path, inputs: InputNames | None = None) -> Policy:
    """Load a policy from a folder: a base model, `global_step_N/model` of a run, or a published checkpoint.

    The returned policy maps observations to action chunks: `policy.predict(observation)` returns actions (B, T, A) in
    the policy's physical units.

    Args:
        path: The model folder.
        inputs: Embodiment, cameras, state and data configuration, where the folder leaves them open
            (`regrasp.models.inputs.InputNames`); a folder that Regrasp wrote needs none.

    Raises:
        UserError: The folder is missing, damaged, or of an unknown kind.
    """
    from regrasp.models.registry import load_policy as load

    return load(Path(path), inputs=inputs)
