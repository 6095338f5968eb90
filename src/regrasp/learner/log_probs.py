"""Log-probabilities of stored decisions, computed as an update's losses compute them."""

from __future__ import annotations

import torch
from torch import Tensor

from regrasp.models.contract import Policy
from regrasp.ranks import Ranks
from regrasp.rollout.decisions import Decisions

_ROW = "row"


def log_probs_anew(
    policy: Policy, decisions: Decisions, size: int, device: torch.device, ranks: Ranks, *, as_it_learns: bool = True
) -> Tensor:
    """Log-probabilities by the policy as it is, so that the ratio of an update's first minibatch is 1.

    What acted may round elsewhere: token by token with a cache, in other batches, compiled without gradients.

    Args:
        policy: The copy that computes losses.
        decisions: Of all ranks, which call this together.
        size: Decisions of a micro-batch; the last one is filled up to it.
        device: The policy's.
        ranks: They divide the decisions.
        as_it_learns: Compute with gradients, which are not used: what is compiled then is what the losses use.

    Returns:
        (B, T, A), on the device of the record.
    """
    known = decisions["log_probs"]
    found = torch.zeros_like(known)
    numbered = decisions.with_columns(**{_ROW: torch.arange(len(decisions), device=known.device)})
    for micro in numbered.micro_batches(size):
        own = micro.to(device)
        whole = own if len(own) == size else own.filled(size)
        with torch.set_grad_enabled(as_it_learns):
            log_probs = policy.evaluate(whole.features(policy), whole.trace).log_probs.detach()
        if not micro.is_idle:
            found[micro[_ROW]] = log_probs[: len(own)].to(found)
    ranks.add([found])
    return found
