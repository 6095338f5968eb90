"""Stage 0: scenes for the pretraining of a tiny backbone, and the cache of what comes out of it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import platformdirs
from pydantic.dataclasses import dataclass

import regrasp
from regrasp.algorithms.schedule import cosine
from regrasp.config.parse import parse, read_json
from regrasp.config.types import BLOCK, NonNegativeFloat
from regrasp.engine.policies import choose_device
from regrasp.envs.mujoco.backend import require_chosen_backend
from regrasp.envs.mujoco.catalog import find_task
from regrasp.envs.mujoco.scenes import render_scenes
from regrasp.envs.scenes import Scenes
from regrasp.errors import UserError
from regrasp.experiment import ExperimentConfig
from regrasp.folders import require_output
from regrasp.logging.progress import progress
from regrasp.models.config import CONFIG_FILE
from regrasp.models.grounding import Lessons
from regrasp.models.pretraining import GROUNDING_FILE, PretrainConfig

SHIPPED = Path(regrasp.__file__).parent / "backbones"
"""Backbones that come with the package, each with a file that says what it was made of; `scripts/make_backbone.py`."""
_NUM_VALIDATION = 1000
_RECIPE_VERSION = 4
"""Raised when what is trained or the format of its folder changes, so that an old backbone in the cache is not used."""


@dataclass(frozen=True, config=BLOCK)
class _Grounding:
    """`GROUNDING_FILE`."""

    median_error_cm: NonNegativeFloat


def check_instructions(config: ExperimentConfig) -> None:
    """Check, before anything is rendered, that the network will have room for the instructions of the mappings.

    Raises:
        UserError: An instruction is too long, or a task whose scenes are to be rendered is unknown.
    """
    assert config.pretrain is not None
    sizes, padding = config.pretrain.architecture, config.actor.model.sequence_length
    sentences = _sentences(config.pretrain)
    for name, env in (("train", config.env.train), ("eval", config.env.eval)):
        mapping = env.mapping
        num_image_tokens = (1 + len(mapping.extra_view_images)) * (sizes.image_size // sizes.patch_size) ** 2
        room = sizes.text_length if padding is None else padding - num_image_tokens
        described = [] if mapping.task_description is None else [("task_description", mapping.task_description)]
        texts = [*described, *(("instructions", text) for text in mapping.instruction_choice()[1])]
        counts = config.pretrain.num_tokens(sentences, [text for _, text in texts])
        for (key, text), needed in zip(texts, counts, strict=True):
            if needed > room:
                raise UserError(
                    f"An instruction of {needed} tokens, with room for {room}",
                    key=f"env.{name}.mapping.{key}",
                    value=text,
                    expected=f"at most {room} tokens",
                    fix="shorten it, or set "
                    + (
                        f"pretrain.architecture.text_length={needed}"
                        if padding is None
                        else f"actor.model.rl_head_config.padding_value={needed + num_image_tokens}"
                    ),
                )


def _sentences(config: PretrainConfig) -> list[str]:
    """The instructions of all tasks, with which the tokenizer is trained."""
    for task_id in config.tasks:
        find_task(task_id, "pretrain.tasks")
    require_chosen_backend()
    from regrasp.envs.mujoco.simulator import create_task

    tasks = [create_task(task_id, key="pretrain.tasks") for task_id in config.tasks]
    for task in tasks:
        if not task.has_scenes:
            raise UserError(
                f"{task.task_id} arranges no scenes to look at",
                key="pretrain.tasks",
                value=task.task_id,
                expected="tasks whose class defines `scatter`",
                fix="define it (docs/tasks.md), or leave the task out",
            )
    return [text for task in tasks for text in task.instructions]


def default_cache() -> Path:
    """Where pretrained backbones are kept between runs."""
    return Path(platformdirs.user_cache_dir("regrasp", appauthor=False)) / "backbones"


def cached_backbone(config: PretrainConfig) -> Path:
    """The folder in the user's cache that belongs to this configuration, whether it is filled or not."""
    described = json.dumps([recipe(config), regrasp.__version__], sort_keys=True)
    return default_cache() / hashlib.sha256(described.encode()).hexdigest()[:16]


def find_backbone(config: PretrainConfig) -> Path:
    """The folder of the backbone of this configuration: one that comes with the package, else that in the cache."""
    made = recipe(config)
    for file in SHIPPED.glob("*.json"):
        if json.loads(file.read_text(encoding="utf-8")) == made:
            return file.with_suffix("")
    return cached_backbone(config)


def recipe(config: PretrainConfig) -> dict[str, Any]:
    """What a backbone is made of, as JSON has it."""
    # The limit changes nothing of what is made; its default stands for any.
    made = asdict(config) | {"max_median_error_cm": PretrainConfig.max_median_error_cm}
    return json.loads(json.dumps(made | {"recipe_version": _RECIPE_VERSION}))


def pretrain(config: ExperimentConfig, output: Path | None = None, *, again: bool = False) -> tuple[Path, float | None]:
    """Pretrain into `output` (default: the user's cache), unless it was done before or comes with the package.

    Returns:
        The folder, and the median grounding error in centimetres, None where nothing had to be done.

    Raises:
        UserError: The folder cannot be written, or an instruction is too long for the network.
        TrainingHaltedError: The error is above `pretrain.max_median_error_cm`.
    """
    assert config.pretrain is not None
    check_instructions(config)
    folder = output or (cached_backbone if again else find_backbone)(config.pretrain)
    if (folder / CONFIG_FILE).is_file() and not again:
        if (folder / GROUNDING_FILE).exists():
            config.pretrain.check_error(_grounding_error(folder / GROUNDING_FILE))
        return folder, None
    require_output(folder, replaces=CONFIG_FILE, overwrite=True, key="--output")
    return folder, train_backbone(config.pretrain, folder)


def _grounding_error(file: Path) -> float:
    """What a backbone reached, in centimetres.

    Raises:
        UserError: The file is damaged.
    """
    fix = "pretrain again, with `regrasp pretrain --again`"
    return parse(_Grounding, read_json(file, fix=fix), file=file, fix=fix).median_error_cm


def train_backbone(config: PretrainConfig, output: Path) -> float:
    """Pretrain on rendered scenes and write the policy folder `output`; see `PretrainConfig.train`."""

    def learning_rate(step: int) -> float:
        return config.lr * cosine(step, num_steps=config.steps, num_warmup_steps=config.steps // 15, min_ratio=0.02)

    return config.train(Lessons(_render(config), _NUM_VALIDATION, learning_rate, choose_device()), output)


def _render(config: PretrainConfig) -> list[Scenes]:
    total = config.num_scenes + _NUM_VALIDATION
    shares = [total // len(config.tasks)] * len(config.tasks)
    shares[0] += total - sum(shares)
    with progress("Rendering scenes", total) as bar:
        return [
            render_scenes(task, share, config.seed, on_progress=bar.advance)
            for task, share in zip(config.tasks, shares, strict=True)
        ]
