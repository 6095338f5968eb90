from __future__ import annotations

import math

import torch
from tensordict import TensorDict

from regrasp.models.groot.grounding import GroundingReadout


def test_positions_are_weighted_means_over_tokens():
    readout = GroundingReadout(6, num_slots=2, generator=torch.Generator().manual_seed(0))
    context = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(1))
    positions = readout(TensorDict({"context": context}, batch_size=[3]))
    assert positions.shape == (3, 2, 2)
    outputs = readout.readout(context).tolist()
    for row in range(3):
        for slot in range(2):
            weights = [math.exp(token[3 * slot]) for token in outputs[row]]
            for axis in range(2):
                total = sum(w * token[3 * slot + 1 + axis] for w, token in zip(weights, outputs[row], strict=True))
                assert math.isclose(positions[row, slot, axis].item(), total / sum(weights), rel_tol=1e-4, abs_tol=1e-5)
