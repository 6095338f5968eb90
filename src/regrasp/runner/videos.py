"""Videos of evaluation episodes."""

from __future__ import annotations

from pathlib import Path

from regrasp.envs.config import VideoConfig
from regrasp.logging.report import Group, VideoItem
from regrasp.logging.side_channel import SideChannel
from regrasp.logging.video import write_episode, write_video
from regrasp.rollout.evaluation import RecordedEpisode

VIDEO_FOLDER = "videos"
EVALUATIONS_FOLDER = "evaluations"
"""Of a training run: a folder for each evaluation that is recorded."""
NUM_VIDEOS = 8
"""Episodes recorded of an evaluation."""


class EpisodeVideos:
    """Writes recorded episodes as they end.

    Args:
        run_dir: Folder of the run.
        config: The block `env.eval.video_cfg`; where it names a folder, the run has one of its own in there.
        part: Folder inside the run's, for one of several evaluations.
        step_seconds: Simulated seconds per frame.
        group: Under which heading the report shows the videos.
    """

    def __init__(self, run_dir: Path, config: VideoConfig, step_seconds: float, group: Group, part: str = "") -> None:
        base = config.video_base_dir
        self._folder = Path(base) / run_dir.name / part if base else run_dir / part / VIDEO_FOLDER
        self._info = config.info_on_video
        self._fps = 1 / step_seconds
        self._group: Group = group
        self._channel = SideChannel("A video", "Videos that cannot be written are left out.")
        self.items: list[VideoItem] = []

    def write(self, episode: RecordedEpisode) -> None:
        """Write one episode's file, if it can be written."""
        with self._channel.attempt():
            self._write(episode)

    def _write(self, episode: RecordedEpisode) -> None:
        result = episode.result
        path = self._folder / video_name(episode.index, result.success)
        frames, rewards = episode.frames.numpy(), episode.rewards.numpy()
        if self._info:
            write_episode(path, frames, result.instruction, rewards, result.success, self._fps, measures=result.info)
        else:
            write_video(path, frames, self._fps)
        self.items.append(VideoItem(path, result.instruction, result.success, self._group, result.seed))


def video_name(episode: int, success: bool | None) -> str:
    """File name of a recorded episode; without an outcome where the task has no success signal."""
    outcome = "" if success is None else "_success" if success else "_failure"
    return f"episode_{episode:03d}{outcome}.mp4"
