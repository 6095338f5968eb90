"""A fine-tuned policy in the layout that its model is published in, or else in a model folder of its own."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from regrasp.checkpoint.layout import EXPORT
from regrasp.checkpoint.read import checkpoint_of
from regrasp.engine.policies import overlay_rl_weights, warn_of_another_task
from regrasp.errors import UserError
from regrasp.experiment import ExperimentConfig
from regrasp.experiment.load import made_with
from regrasp.experiment.of_model import naming_its_experiment
from regrasp.folders import atomic_folder, require_output
from regrasp.models.card import write_card
from regrasp.models.config import CONFIG_FILE, ExportOptions
from regrasp.models.origin import read_origin
from regrasp.models.registry import check_folder, load_policy, model_in


def export(options: ExportOptions, config: ExperimentConfig | None = None) -> Path:
    """Write a policy as its model is published; where there is no such layout, a folder as `regrasp sft` writes it.

    Args:
        options: What to write.
        config: The experiment that the folder is to keep; None: the one that it was trained with, or else made with.

    Returns:
        The folder written.

    Raises:
        UserError: A file is missing or damaged, the RL weights or the experiment are of another model, or `output` is
            taken or cannot be written. Nothing remains of the attempt.
    """
    model = model_in(options.model_path, "--model_path")
    checkpoint = None if options.rl_model_path is None else checkpoint_of(options.rl_model_path)
    trained = None if checkpoint is None else checkpoint / EXPORT
    origin = read_origin(trained if trained is not None and trained.is_dir() else options.model_path)
    if config is not None:
        with naming_its_experiment(options.model_path):
            check_folder(config.actor.model, options.model_path)
        warn_of_another_task(config, "train")
        origin = origin.made_with(*made_with(config))
    options = dataclasses.replace(options, origin=origin)
    if model.has_published_layout():
        return model.export(options)
    return _export_folder(options)


def _export_folder(options: ExportOptions) -> Path:
    """Write the policy's own folder, with the RL weights and in the dtype that are asked for."""
    require_output(options.output, key="--output")
    if options.with_value_head:
        raise UserError(
            "A folder of this kind of model is written as the model saves it",
            file=options.model_path / CONFIG_FILE,
            key="--with_value_head",
            expected="a model with a published layout, which has no place for a value head",
            fix="leave it out",
        )
    policy = load_policy(options.model_path)
    if options.rl_model_path is not None:
        overlay_rl_weights(policy, options.rl_model_path)
    policy.origin = options.origin
    with atomic_folder(options.output, checksums=True) as draft:
        policy.to(options.dtype).write_folder(draft)
        write_card(draft, options.evaluation)
    return options.output
