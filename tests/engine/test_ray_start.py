"""A cluster of a run's own that does not come up is an error with a way out."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from regrasp.engine.ray.cluster import connected
from regrasp.errors import UserError


def test_servers_that_do_not_start_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def times_out(**_: Any) -> None:
        raise Exception("The current node timed out\nduring startup.")

    monkeypatch.setattr(ray, "init", times_out)
    with (
        pytest.raises(UserError, match="did not start: The current node timed out during startup") as caught,
        connected(None),
    ):
        raise AssertionError("started")
    assert caught.value.fix is not None
