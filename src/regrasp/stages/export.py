"""A fine-tuned policy in the layout that its model is published in."""

from __future__ import annotations

from pathlib import Path

from regrasp.models.config import ExportOptions
from regrasp.models.registry import model_in


def export(options: ExportOptions) -> Path:
    """Write a policy as its model is published.

    Returns:
        The folder written.

    Raises:
        UserError: The model has no published layout, a file is missing or damaged, the RL weights are of another model,
            or `output` is taken or cannot be written. Nothing remains of the attempt.
    """
    return model_in(options.model_path, "--model_path").export(options)
