"""Regrasp: fine-tune pretrained vision-language-action policies with reinforcement learning in simulation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from regrasp.models.contract import Policy

__version__ = "0.1.0"
__all__ = ["__version__", "load_policy"]


def load_policy(path: str | Path) -> Policy:
    """Load a policy from a self-contained folder (a base model, or `global_step_N/model` of a run).

    The returned policy maps observations to action chunks: `policy.predict(observation)` returns actions (B, T, A) in
    the policy's physical units.

    Raises:
        UserError: The folder is missing, damaged, or of an unknown kind.
    """
    from regrasp.models.registry import load_policy as load

    return load(Path(path))
