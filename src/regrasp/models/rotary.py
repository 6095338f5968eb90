"""Rotary embeddings of the library's language models."""

from __future__ import annotations

from typing import Any

import torch


def reset_frequencies(rotary: Any, device: torch.device) -> None:
    """Recompute the frequencies of a rotary embedding in float32, on a device: no checkpoint holds them."""
    frequencies, _ = rotary.compute_default_rope_parameters(rotary.config)
    frequencies = frequencies.to(device)
    rotary.register_buffer("inv_freq", frequencies, persistent=False)
    rotary.register_buffer("original_inv_freq", frequencies.clone(), persistent=False)
