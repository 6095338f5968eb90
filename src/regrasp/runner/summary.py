"""From episodes to the numbers that are reported."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from regrasp.logging.metrics import EPISODE_METRICS
from regrasp.logging.report import EvaluationSummary
from regrasp.rollout.episodes import EpisodeResult


def episode_metrics(episodes: Sequence[EpisodeResult], prefix: str) -> dict[str, float]:
    """Mean success, return, length and task measures, under RLinf's names; empty without episodes."""
    if not episodes:
        return {f"{prefix}/num_trajectories": 0.0}
    count = len(episodes)
    total_length = sum(e.length for e in episodes)
    values = (
        sum(e.success for e in episodes) / count,
        sum(e.total_reward for e in episodes) / count,
        total_length / count,
        sum(e.total_reward for e in episodes) / max(1, total_length),
        float(count),
    )
    metrics = dict(zip(EPISODE_METRICS, values, strict=True))
    metrics |= {name: sum(e.info[name] for e in episodes) / count for name in episodes[0].info}
    return {f"{prefix}/{name}": value for name, value in metrics.items()}


def summarize(episodes: Sequence[EpisodeResult], policy: str) -> EvaluationSummary:
    """Success with its interval, overall and by instruction, and the task's own measures.

    Args:
        episodes: At least one.
        policy: What acted, in words.
    """
    counts: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for episode in episodes:
        successes, total = counts[episode.instruction]
        counts[episode.instruction] = (successes + episode.success, total + 1)
    measures = {name: [episode.info[name] for episode in episodes] for name in episodes[0].info}
    return EvaluationSummary.from_counts(dict(sorted(counts.items())), measures, policy)
