"""Evaluation: fixed seeds, one episode per seed, an outcome that does not depend on how many environments run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from regrasp.envs.contract import Observation, Step, VecEnv
from regrasp.rollout.episodes import Choose, EpisodeResult, Episodes, NumberedEpisodes, Recorder, play_episodes


@dataclass
class RecordedEpisode:
    """Frames of one episode."""

    index: int
    frames: Tensor
    """(L, H, W, 3) uint8."""
    rewards: Tensor
    """(L,) float32."""
    result: EpisodeResult


class VideoRecorder(Recorder):
    """Records frames of the first episodes.

    Args:
        num_episodes: So many.
        write: Called as each of them ends.
    """

    def __init__(self, num_episodes: int, write: Callable[[RecordedEpisode], None]) -> None:
        self.num_episodes = num_episodes
        self.write = write
        self._wanted: dict[int, int] = {}
        """Index of the episode by environment."""
        self._pieces: dict[int, list[tuple[Tensor, Tensor]]] = {}
        """Frames and rewards of each step, by episode."""

    def acting(self, episodes: Episodes, observation: Observation, actions: Tensor) -> Tensor:
        """Ask the simulator for frames of the environments that run one of the first episodes."""
        indices = {row: episodes.index(row) for row in episodes.rows.tolist()}
        wanted = {row: index for row, index in indices.items() if index < self.num_episodes}
        if wanted.keys() != self._wanted.keys():
            episodes.env.record(list(wanted))
        self._wanted = wanted
        return actions

    def stepped(self, step: Step) -> None:
        """Keep the frames."""
        for place, (row, index) in enumerate(self._wanted.items()):
            assert step.frames is not None
            length = int(step.num_executed[row])
            piece = step.frames[place, :length].clone(), step.rewards[row, :length]
            self._pieces.setdefault(index, []).append(piece)

    def finished(self, index: int, result: EpisodeResult) -> None:
        """Hand over the frames of an episode that has ended."""
        if index in self._pieces:
            frames, rewards = zip(*self._pieces.pop(index), strict=True)
            self.write(RecordedEpisode(index, torch.cat(frames), torch.cat(rewards), result))


def evaluate(
    env: VecEnv,
    choose: Choose,
    numbers: Sequence[int],
    seed: int,
    stream: int,
    on_episode: Callable[[EpisodeResult], None] | None = None,
    recorder: VideoRecorder | None = None,
) -> list[EpisodeResult]:
    """Run numbered episodes in N environments; an environment that finishes takes the next episode at once.

    Args:
        env: The environments.
        choose: What acts.
        numbers: Of the episodes.
        seed: Episode i is seeded by (seed, "eval", stream, i).
        stream: `env.eval.seed`.
        on_episode: Called with every finished episode.
        recorder: Of their frames.

    Returns:
        The results in the order of `numbers`.
    """
    episodes = NumberedEpisodes(env, seed, "eval", stream, numbers=numbers)
    results: dict[int, EpisodeResult] = {}
    for index, result in play_episodes(episodes, choose, recorder):
        results[index] = result
        if on_episode is not None:
            on_episode(result)
        if recorder is not None:
            recorder.finished(index, result)
    env.record([])
    return [results[number] for number in numbers]
