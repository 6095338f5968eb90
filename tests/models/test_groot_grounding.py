import math

import pytest
import torch
from tensordict import TensorDict

from regrasp.models.groot.network.grounding import GroundingReadout
from regrasp.models.pointing import pointing_target


def test_positions_are_weighted_means_over_tokens():
    generator = torch.Generator().manual_seed(0)
    readout = GroundingReadout(6, 2, generator)
    context = torch.randn(3, 5, 6, generator=generator)
    positions, scores = readout(TensorDict({"context": context}, batch_size=[3]))
    assert positions.shape == (3, 2, 2)
    assert scores.shape == (3, 2, 5)
    raw = context @ readout.readout.weight.T + readout.readout.bias
    for row in range(3):
        for slot in range(2):
            score, x, y = raw[row, :, 3 * slot : 3 * slot + 3].unbind(-1)
            weight = score.exp() / score.exp().sum()
            torch.testing.assert_close(positions[row, slot], torch.stack([(weight * x).sum(), (weight * y).sum()]))
            torch.testing.assert_close(scores[row, slot], score)


@pytest.mark.parametrize(("column", "row"), [(0, 0), (3, 1), (5, 5)])
def test_the_pointing_target_peaks_at_the_token_that_holds_the_object(column, row):
    grid = 6
    pixel = torch.tensor([(column + 0.5) / grid, (row + 0.5) / grid])
    target = pointing_target(pixel, grid)
    assert target.sum() == pytest.approx(1.0)
    assert int(target.argmax()) == row * grid + column
    neighbour = row * grid + (column + 1 if column + 1 < grid else column - 1)
    assert target[neighbour] / target.max() == pytest.approx(math.exp(-1 / (2 * 0.5**2)), rel=1e-4)
