"""Grounding pretraining of a tiny vision-language backbone: where is what the words name?

A real VLA inherits this from its vision-language model. The backbone, and the action head's self-attention over its
features, are trained with a readout that is thrown away afterwards; what is kept is a policy folder whose action head
is untrained but for that.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import platformdirs
import torch
from tensordict import TensorDict
from torch import Tensor, nn

import regrasp
from regrasp.envs.mujoco.backend import require_chosen_backend
from regrasp.envs.mujoco.catalog import TASK_IDS, load_class
from regrasp.envs.mujoco.scenes import Scenes, render_scenes
from regrasp.errors import TrainingHaltedError, UserError
from regrasp.experiment import ExperimentConfig, PretrainConfig
from regrasp.folders import atomic_folder
from regrasp.learner.schedule import cosine
from regrasp.logging.progress import progress
from regrasp.models.groot.checkpoint import save_groot
from regrasp.models.groot.config import GrootConfig
from regrasp.models.groot.network.grounding import GroundingReadout, pointing_target
from regrasp.models.groot.policy import GrootPolicy
from regrasp.models.groot.processing.images import prepare_images
from regrasp.models.groot.processing.processor import GrootProcessor
from regrasp.models.groot.processing.tokenizer import train_tokenizer
from regrasp.models.groot.settings import GrootModelConfig
from regrasp.seeding import torch_generator

_NUM_VALIDATION = 1000
_EVALUATION_BATCH = 500
_POINTING_WEIGHT = 0.1
_SCALE = 0.1
"""Targets are regressed in units of 10 cm."""
_RECIPE_VERSION = 3
"""Raised when what is trained or the format of its folder changes, so that an old backbone in the cache is not used."""


@dataclass
class _Examples:
    """Scenes of all tasks, with the token ids of every instruction."""

    images: Tensor
    """(N, H, W, 3) uint8."""
    positions: Tensor
    """(N, I, S, 2) in units of `_SCALE`, NaN past the objects that the instruction names."""
    pixels: Tensor
    """(N, I, S, 2) image coordinates of the same objects."""
    input_ids: Tensor
    """(I, L)."""
    allowed: Tensor
    """(N, I) bool: instructions of the scene's own task."""


def check_instructions(config: ExperimentConfig) -> None:
    """Check, before anything is rendered, that the network will have room for the instructions of the mappings.

    Raises:
        UserError: An instruction is too long, or a task whose scenes are to be rendered is unknown.
    """
    assert config.pretrain is not None
    sizes, model = config.pretrain.architecture, config.actor.model
    padding = model.rl_head_config.padding_value if isinstance(model, GrootModelConfig) else None
    tokenizer = train_tokenizer(_sentences(config.pretrain), sizes.vocab_size)
    for name, env in (("train", config.env.train), ("eval", config.env.eval)):
        mapping = env.mapping
        num_image_tokens = (1 + len(mapping.extra_view_images)) * (sizes.image_size // sizes.patch_size) ** 2
        room = sizes.text_length if padding is None else padding - num_image_tokens
        described = [] if mapping.task_description is None else [("task_description", mapping.task_description)]
        for key, text in (*described, *(("instructions", text) for text in mapping.instruction_choice()[1])):
            needed = len(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))
            if needed > room:
                raise UserError(
                    f"An instruction of {needed} tokens, with room for {room}",
                    key=f"env.{name}.mapping.{key}",
                    value=text,
                    expected=f"at most {room} tokens",
                    mend="shorten it, or set "
                    + (
                        f"pretrain.architecture.text_length={needed}"
                        if padding is None
                        else f"actor.model.rl_head_config.padding_value={needed + num_image_tokens}"
                    ),
                )


def _sentences(config: PretrainConfig) -> list[str]:
    """The instructions of all tasks, with which the tokenizer is trained."""
    unknown = sorted(set(config.tasks) - TASK_IDS.keys())
    if unknown:
        raise UserError(
            "No such embedded task",
            key="pretrain.tasks",
            value=unknown,
            expected=f"some of {sorted(TASK_IDS)}",
            mend="correct the names; `regrasp tasks` lists them",
        )
    require_chosen_backend()
    return [text for task in config.tasks for text in load_class(TASK_IDS[task]).instructions]


def default_cache() -> Path:
    """Where pretrained backbones are kept between runs."""
    return Path(platformdirs.user_cache_dir("regrasp", appauthor=False)) / "backbones"


def cached_backbone(config: PretrainConfig) -> Path:
    """The folder in the user's cache that belongs to this configuration, whether it is filled or not."""
    described = json.dumps([asdict(config), _RECIPE_VERSION, regrasp.__version__], sort_keys=True)
    return default_cache() / hashlib.sha256(described.encode()).hexdigest()[:16]


def pretrain(config: PretrainConfig, output: Path) -> float:
    """Pretrain and write the policy folder `output`.

    Returns:
        Median distance between predicted and true position over held-out scenes, in centimetres.

    Raises:
        TrainingHaltedError: The error is above `max_median_error_cm`; nothing is written.
    """
    seed = config.seed
    scenes = _render(config)
    sentences = [text for part in scenes for text in part.instructions]
    policy = _fresh_policy(config, sentences)
    examples = _examples(scenes, policy)
    readout = GroundingReadout(
        policy.config.action_head_cfg.backbone_embedding_dim,
        examples.positions.shape[2],
        torch_generator(seed, "init", 1),
    )
    order = torch.randperm(len(examples.images), generator=torch_generator(seed, "data", 0))
    _train(policy, readout, examples, order[_NUM_VALIDATION:], config, torch_generator(seed, "data", 1))
    error = _median_error(policy, readout, examples, order[:_NUM_VALIDATION])
    if error > config.max_median_error_cm:
        raise TrainingHaltedError(
            f"Grounding pretraining ended with a median error of {error:.2f} cm, above the limit of"
            f" {config.max_median_error_cm} cm (pretrain.max_median_error_cm). Raise pretrain.steps or num_scenes."
        )
    with atomic_folder(output, overwrite=True) as draft:
        save_groot(policy, draft)
    return error


def _render(config: PretrainConfig) -> list[Scenes]:
    total = config.num_scenes + _NUM_VALIDATION
    shares = [total // len(config.tasks)] * len(config.tasks)
    shares[0] += total - sum(shares)
    with progress("Rendering scenes", total) as bar:
        return [
            _resized(render_scenes(task, share, config.seed, on_progress=bar.advance), config.architecture.image_size)
            for task, share in zip(config.tasks, shares, strict=True)
        ]


def _resized(scenes: Scenes, size: int) -> Scenes:
    """The scenes with images as the policy's processor resizes them."""
    images = prepare_images([torch.from_numpy(scenes.images)], size=size, crop_scale=1.0)
    return replace(scenes, images=images[:, 0].numpy())


def _fresh_policy(config: PretrainConfig, sentences: list[str]) -> GrootPolicy:
    architecture = config.architecture
    groot = GrootConfig.tiny(architecture)
    processor = GrootProcessor.fresh(
        groot,
        sentences,
        num_views=1,
        state_dim=1,
        action_dim=1,
        text_length=architecture.text_length,
        text_first=architecture.text_first,
    )
    settings = GrootModelConfig(
        num_action_chunks=1, action_dim=1, add_value_head=False, trainable="head_without_context"
    )
    policy = GrootPolicy(groot, processor, settings, seed=config.seed)
    policy.backbone.reset_parameters(torch_generator(config.seed, "init", 0))
    return policy


def _examples(scenes: list[Scenes], policy: GrootPolicy) -> _Examples:
    """Join the tasks' scenes; a scene's instructions are its own task's."""
    starts = np.cumsum([0, *(len(part.instructions) for part in scenes)])

    def join(name: str) -> Tensor:
        blocks = [getattr(part, name) for part in scenes]
        padded = [
            np.pad(block, ((0, 0), (start, starts[-1] - end), (0, 0), (0, 0)), constant_values=np.nan)
            for block, (start, end) in zip(blocks, itertools.pairwise(starts), strict=True)
        ]
        return torch.from_numpy(np.concatenate(padded))

    positions = join("positions")
    return _Examples(
        images=torch.from_numpy(np.concatenate([part.images for part in scenes])),
        positions=positions / _SCALE,
        pixels=join("pixels"),
        input_ids=policy.processor.text.encode([text for part in scenes for text in part.instructions]),
        allowed=~positions.isnan().flatten(2).all(-1),
    )


def _train(
    policy: GrootPolicy,
    readout: GroundingReadout,
    examples: _Examples,
    train_rows: Tensor,
    config: PretrainConfig,
    generator: torch.Generator,
) -> None:
    parameters = [p for _, p in policy.trainable("backbone")] + list(readout.parameters())
    optimizer = torch.optim.AdamW(parameters, config.lr, weight_decay=1e-4, betas=(0.9, 0.95))
    policy.train()
    with progress("Pretraining backbone", config.steps) as bar:
        for step in range(config.steps):
            optimizer.param_groups[0]["lr"] = config.lr * cosine(
                step, num_steps=config.steps, num_warmup_steps=config.steps // 15, min_ratio=0.02
            )
            rows = train_rows[torch.randint(len(train_rows), (config.batch_size,), generator=generator)]
            instructions = torch.multinomial(examples.allowed[rows].float(), 1, generator=generator).squeeze(1)
            predicted, target, pointing = _predict(policy, readout, examples, rows, instructions)
            loss = nn.functional.smooth_l1_loss(predicted, target, beta=0.3) + _POINTING_WEIGHT * pointing
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            error = (predicted - target).detach().reshape(-1, 2).norm(dim=1).median() * _SCALE * 100
            bar.advance(error=f"{error:.2f} cm")
    policy.eval()


def _predict(
    policy: GrootPolicy, readout: GroundingReadout, examples: _Examples, rows: Tensor, instructions: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Predicted and true positions of all named objects of a batch, (M, 2) in units of `_SCALE`, and a pointing loss.

    The pointing loss is the cross-entropy between the readout's attention over image tokens and where the object is.
    """
    inputs = TensorDict(
        {
            "images": examples.images[rows][:, None],
            "input_ids": examples.input_ids[instructions],
            "state": torch.zeros(len(rows), policy.config.action_head_cfg.max_state_dim),
        },
        batch_size=[len(rows)],
    )
    predicted, scores = readout(policy.encode(inputs))
    target = examples.positions[rows, instructions]
    named = ~target.isnan().any(-1)
    vision = policy.config.eagle_cfg.vision_config
    is_image = inputs["input_ids"][0] == policy.config.eagle_cfg.image_token_index
    wanted = pointing_target(examples.pixels[rows, instructions][named], vision.image_size // vision.patch_size)
    pointing = nn.functional.cross_entropy(scores[named][:, is_image], wanted)
    return predicted[named], target[named], pointing


@torch.no_grad()
def _median_error(policy: GrootPolicy, readout: GroundingReadout, examples: _Examples, rows: Tensor) -> float:
    """Median distance in centimetres over held-out scenes, every instruction of each."""
    pairs = examples.allowed[rows].nonzero()
    distances = []
    for part in pairs.split(_EVALUATION_BATCH):
        predicted, target, _ = _predict(policy, readout, examples, rows[part[:, 0]], part[:, 1])
        distances.append((predicted - target).norm(dim=1))
    return float(torch.cat(distances).median()) * _SCALE * 100
