"""From episodes to the numbers that are reported."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from regrasp.logging.metrics import EPISODE_METRICS
from regrasp.logging.report import EvaluationSummary
from regrasp.rollout.episodes import EpisodeResult


def episode_metrics(episodes: Sequence[EpisodeResult], prefix: str) -> dict[str, float]:
    """Mean success, return, length and task measures, under RLinf's names; empty without episodes.

    A task without a success signal has no mean success.
    """
    if not episodes:
        return {f"{prefix}/num_trajectories": 0.0}
    count = len(episodes)
    total_length = sum(e.length for e in episodes)
    successes = [e.success for e in episodes if e.success is not None]
    values = (
        sum(successes) / count,
        sum(e.total_reward for e in episodes) / count,
        total_length / count,
        sum(e.total_reward for e in episodes) / max(1, total_length),
        float(count),
    )
    metrics = dict(zip(EPISODE_METRICS, values, strict=True))
    if not successes:
        del metrics[EPISODE_METRICS[0]]
    metrics |= {name: sum(e.info[name] for e in episodes) / count for name in episodes[0].info}
    return {f"{prefix}/{name}": value for name, value in metrics.items()}


def summarize(episodes: Sequence[EpisodeResult], policy: str) -> EvaluationSummary:
    """Success with its interval, overall and by instruction, and the task's own measures.

    Where the task has no success signal, the return takes its place, as a measure.

    Args:
        episodes: At least one.
        policy: What acted, in words.
    """
    measures = {name: [episode.info[name] for episode in episodes] for name in episodes[0].info}
    successes = [episode.success for episode in episodes if episode.success is not None]
    if not successes:
        returns = [episode.total_reward for episode in episodes]
        return EvaluationSummary.without_success({"return": returns, **measures}, policy)
    counts: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for episode, succeeded in zip(episodes, successes, strict=True):
        before, total = counts[episode.instruction]
        counts[episode.instruction] = (before + succeeded, total + 1)
    return EvaluationSummary.from_counts(dict(sorted(counts.items())), measures, policy)
