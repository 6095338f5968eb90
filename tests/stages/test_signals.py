"""SIGTERM at every stage of an update: the run ends soon, and continues as if it had not."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from run_toys import checkpoint, metrics, mlp_experiment, same_weights, saved_steps

from regrasp.engine.local import LocalEngine
from regrasp.learner.learner import Learner
from regrasp.rollout.inference import Inference
from regrasp.runner import runner as train_module
from regrasp.runner.interrupt import StopRequest
from regrasp.stages.train import train


def signal_at(monkeypatch: pytest.MonkeyPatch, owner: type, method: str, call: int) -> None:
    """Send SIGTERM to this process just before the given call (from 1) of a method."""
    original: Callable[..., Any] = getattr(owner, method)
    count = 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, method, counted)


@pytest.mark.parametrize(
    ("owner", "method", "call", "saved"),
    [
        pytest.param(LocalEngine, "collect", 1, 0, marks=pytest.mark.full),  # before the first decision of all
        pytest.param(LocalEngine, "collect", 3, 2, marks=pytest.mark.full),
        (Inference, "decide", 2 * 3 + 2, 2),  # in the middle of the third rollout
        (Learner, "_step", 2 * 6 + 3, 3),  # in the middle of the third update
        pytest.param(LocalEngine, "evaluate", 1, 2, marks=pytest.mark.full),
    ],
)
def test_a_signal_ends_the_run_and_loses_nothing(
    finished_run: Path, start_model: Path, tmp_path: Path, owner: type, method: str, call: int, saved: int
) -> None:
    model = f"actor.model.model_path={start_model}"
    handler = signal.getsignal(signal.SIGTERM)
    started = time.monotonic()
    with pytest.MonkeyPatch.context() as patched:
        signal_at(patched, owner, method, call)
        assert not train(mlp_experiment(model, "runner.save_interval=-1"), tmp_path)
    assert time.monotonic() - started < 30
    assert signal.getsignal(signal.SIGTERM) is handler
    assert saved_steps(tmp_path) == [saved]
    assert [line["step"] for line in metrics(tmp_path)] == list(range(1, saved + 1))
    if saved:
        assert same_weights(checkpoint(tmp_path, saved), checkpoint(finished_run, saved))

    assert train(mlp_experiment(model, f"runner.resume_dir={tmp_path}"), tmp_path)
    assert same_weights(checkpoint(tmp_path, 4), checkpoint(finished_run, 4))
    untouched = [line for line in metrics(finished_run) if line["step"] > saved]
    assert [line for line in metrics(tmp_path) if line["step"] > saved] == untouched


def abandon_the_third_update(run: Path, *overrides: str) -> None:
    """Send SIGTERM in the middle of it, and leave it no time to finish."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(train_module, "_FINISH_SECONDS", 0.0)
        signal_at(patched, Learner, "_step", 2 * 6 + 3)
        assert not train(mlp_experiment(*overrides), run)


def test_an_update_that_takes_too_long_is_abandoned(
    finished_run: Path,
    start_model: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = f"actor.model.model_path={start_model}"
    abandon_the_third_update(tmp_path, model, "runner.save_interval=1")
    assert "abandoned" in caplog.text
    assert saved_steps(tmp_path) == [1, 2]
    assert train(mlp_experiment(model, f"runner.resume_dir={tmp_path}"), tmp_path)
    assert same_weights(checkpoint(tmp_path, 4), checkpoint(finished_run, 4))


@pytest.mark.full
def test_an_abandoned_update_costs_none_of_those_before_it(
    finished_run: Path, start_model: Path, tmp_path: Path
) -> None:
    model = f"actor.model.model_path={start_model}"
    abandon_the_third_update(tmp_path, model, "runner.save_interval=-1")
    assert saved_steps(tmp_path) == [2]
    assert not same_weights(checkpoint(tmp_path, 2), checkpoint(finished_run, 2)), "steps of the third update are in it"
    assert train(mlp_experiment(model, f"runner.resume_dir={tmp_path}"), tmp_path)
    assert saved_steps(tmp_path)[-1] == 4


def test_the_second_signal_ends_the_run_at_once(start_model: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patched:
        signal_at(patched, Learner, "_step", 6 + 2)
        signal_at(patched, Learner, "_step", 6 + 4)
        with pytest.raises(KeyboardInterrupt):
            train(mlp_experiment(f"actor.model.model_path={start_model}"), tmp_path)
    assert saved_steps(tmp_path) == [1]


ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


@pytest.fixture
def with_terminal() -> Iterator[None]:
    """SIGHUP as it is by default; below nohup it is ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("with_terminal")
@pytest.mark.parametrize("number", ENDING)
def test_a_request_knows_how_old_it_is(number: signal.Signals) -> None:
    handlers = [signal.getsignal(n) for n in ENDING]
    with StopRequest() as stop:
        assert not stop.requested
        assert not stop.overdue(-1.0)
        os.kill(os.getpid(), number)
        assert stop.requested
        assert not stop.overdue(60.0)
        assert stop.overdue(0.0)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert [signal.getsignal(n) for n in ENDING] == handlers


def test_the_end_of_the_terminal_is_ignored_where_the_user_asked_for_it() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.requested
    finally:
        signal.signal(signal.SIGHUP, before)
