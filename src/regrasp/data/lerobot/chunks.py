"""Action chunks, the targets of imitation."""

from __future__ import annotations

import numpy as np


def action_chunks(actions: np.ndarray, episode_index: np.ndarray, horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """The next `horizon` actions from every frame, never those of another episode.

    Past the end of its episode a chunk repeats the episode's last action, and is marked invalid there.

    Args:
        actions: (N, A), frames in order, N >= 1.
        episode_index: (N,) integers, the frames of an episode adjacent.
        horizon: Length H of a chunk, at least 1.

    Returns:
        Chunks (N, H, A) and validity (N, H) bool; the first action of a chunk is always valid.

    Raises:
        ValueError: If shapes disagree, an episode is in pieces, or there is no frame or no action to give.
    """
    num_frames = len(actions)
    if actions.ndim != 2 or episode_index.shape != (num_frames,):
        raise ValueError(f"expected actions (N, A) and episodes (N,), not {actions.shape} and {episode_index.shape}")
    if num_frames < 1 or horizon < 1:
        raise ValueError(f"chunks need at least 1 frame and 1 action, not {num_frames} and {horizon}")
    last = np.append(np.flatnonzero(np.diff(episode_index)), num_frames - 1)
    if len(np.unique(episode_index)) != len(last):
        raise ValueError("the frames of an episode must be adjacent")
    frame = np.arange(num_frames)
    last_of_frame = last[np.searchsorted(last, frame)][:, None]
    wanted = frame[:, None] + np.arange(horizon)
    return actions[np.minimum(wanted, last_of_frame)], wanted <= last_of_frame
