"""Demonstrations as a LeRobotDataset v3.0: tables in Parquet, cameras in H.264."""

from regrasp.data.lerobot.chunks import action_chunks
from regrasp.data.lerobot.reader import DemonstrationDataset
from regrasp.data.lerobot.schema import Episode, FeatureSpec, VideoSpan
from regrasp.data.lerobot.writer import DatasetWriter, EpisodeArrays

__all__ = [
    "DatasetWriter",
    "DemonstrationDataset",
    "Episode",
    "EpisodeArrays",
    "FeatureSpec",
    "VideoSpan",
    "action_chunks",
]
