"""Distillation: a model that acts by its published weights alone learns what one with an actor beside its head does."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from tensordict import TensorDict
from torch import Tensor

from regrasp.engine.policies import choose_device, create_policy
from regrasp.envs.contract import Observation, VecEnv
from regrasp.envs.mapping import ActionMapping
from regrasp.envs.registry import create_env
from regrasp.errors import UserError
from regrasp.experiment import ExperimentConfig
from regrasp.experiment.load import made_with
from regrasp.folders import atomic_folder, require_output
from regrasp.logging.progress import progress
from regrasp.models.config import CONFIG_FILE as MODEL_FILE
from regrasp.models.contract import Policy
from regrasp.rollout.episodes import NoiseKey, NumberedEpisodes, play_episodes
from regrasp.rollout.inference import moved
from regrasp.seeding import KeyedNoise
from regrasp.stages.sft import train_on
from regrasp.stages.training_frames import Frames

_STREAM = 2
"""Of the episodes' seeds, apart from those of demonstrations."""


@dataclass
class _Lesson:
    """What the teacher would do in the states that one of the two, as the round has it, comes to."""

    teacher: Policy
    actor: Policy
    mapping: ActionMapping
    seed: int
    round: int
    device: torch.device
    inputs: list[TensorDict] = field(default_factory=list)
    actions: list[Tensor] = field(default_factory=list)

    @torch.no_grad()
    def choose(self, observation: Observation, rows: Tensor, keys: Sequence[NoiseKey]) -> Tensor:
        """The actor's actions (B, T, A); what the teacher would do is kept."""
        del rows
        features = self.teacher.encode(self.teacher.prepare(moved(observation, self.device)))
        noise = KeyedNoise(self.seed, "data", [(row, _STREAM + self.round, number) for row, *_, number in keys])
        wanted = self.teacher.act(features, noise, deterministic=True).actions
        done = wanted if self.actor is self.teacher else self.actor.act(features, noise, deterministic=True).actions
        self.inputs.append(features.cpu())
        self.actions.append(wanted.cpu())
        return self.mapping(done.cpu())


def check(output: Path, *, overwrite: bool = False) -> None:
    """Find, before anything starts, that the folder cannot be written.

    Raises:
        UserError: It is taken or cannot be written.
    """
    require_output(output, replaces=MODEL_FILE, overwrite=overwrite, key="--output")


def distill(config: ExperimentConfig, output: Path, *, overwrite: bool = False) -> tuple[Path, float]:
    """Imitate `actor.model.model_path` on the training environments, and write a plain model.

    In the first round the teacher acts, later the student does, so that it learns what to do where it comes itself
    (DAgger, arXiv:1011.0686). The student begins as the teacher's own action head.

    Args:
        config: The experiment; its blocks `distill`, and `sft` for the optimizer.
        output: Folder of the model.
        overwrite: Replace the model that is there.

    Returns:
        The folder, and the last training loss.

    Raises:
        UserError: The model has nothing to distill, does not fit the experiment, or the folder cannot be written.
        TrainingHaltedError: The loss is not finite.
    """
    check(output, overwrite=overwrite)
    assert config.sft is not None
    sft = dataclasses.replace(config.sft, train="head")
    device, model = choose_device(), config.actor.model
    with contextlib.closing(create_env(config.env.train, "train", model.num_action_chunks, config.seed)) as env:
        mapping_config = config.env.train.mapping
        teacher = create_policy(model, mapping_config, env.spec, config.seed).to(device).eval()
        student = teacher.student()
        assert model.model_path is not None
        if student is None or not (Path(model.model_path) / teacher.actor_file).is_file():
            raise UserError(
                "The model has nothing to distill: it acts by its published weights alone",
                key="actor.model.model_path",
                value=model.model_path,
                expected="one that learned with actor.model.proposal residual or dsrl, and has a file of that name",
                fix="use the model as it is",
            )
        mapping = ActionMapping(mapping_config, model.action_dim, env.spec.action_dim, "env.train.mapping")
        lessons: list[Frames] = []
        loss = 0.0
        for number in range(config.distill.rounds):
            actor = student if lessons else teacher
            lesson = _Lesson(teacher, actor, mapping, config.seed, number, device)
            _play(env, lesson, config, number)
            lessons.append(_frames(lesson, student.spec.action_horizon))
            loss, _ = train_on(
                student, _joined(lessons), None, sft, config.seed + number, device, "Training the student"
            )
    with atomic_folder(output, overwrite=overwrite, checksums=True) as draft:
        student.origin = student.origin.made_with(*made_with(config))
        student.write_folder(draft)
    return output, loss


def _play(env: VecEnv, lesson: _Lesson, config: ExperimentConfig, number: int) -> None:
    count = config.distill.num_episodes
    episodes = NumberedEpisodes(env, config.seed, "data", _STREAM, number, numbers=range(count))
    title = "Episodes of the " + ("teacher" if lesson.actor is lesson.teacher else "student")
    successes, ended = 0, 0
    with progress(title, count) as bar:
        for _, result in play_episodes(episodes, lesson.choose):
            successes, ended = successes + bool(result.success), ended + 1
            bar.advance(success=f"{successes / ended:.0%}")


def _frames(lesson: _Lesson, horizon: int) -> Frames:
    """The decisions of a round, with actions as long as the head's horizon."""
    actions = torch.cat(lesson.actions)
    count, length = actions.shape[:2]
    valid = (torch.arange(horizon) < length).expand(count, horizon)
    return Frames(TensorDict.cat(lesson.inputs), F.pad(actions, (0, 0, 0, horizon - length)), valid)


def _joined(lessons: Sequence[Frames]) -> Frames:
    inputs = TensorDict.cat([lesson.inputs for lesson in lessons])
    return Frames(inputs, *(torch.cat([getattr(lesson, name) for lesson in lessons]) for name in ("actions", "valid")))
