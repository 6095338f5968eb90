import errno
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from regrasp.errors import UserError
from regrasp.logging.backends import TrackedRun, _answers, prepare_backends
from regrasp.logging.metrics import METRICS_FILE, MetricsLogger, read_metrics


def open_logger(folder, backends=()):
    return MetricsLogger(TrackedRun(folder, "p", "e", "0a1b", "seed: 1\n"), prepare_backends(backends))


def log_steps(logger, steps):
    for step in steps:
        logger.log(step, {"env/success_once": step / 10, "train/actor/approx_kl": 0.1 * step})


def test_a_line_is_on_disk_when_log_returns(tmp_path):
    logger = open_logger(tmp_path / "run")
    logger.log(1, {"env/return": 2})
    assert json.loads((tmp_path / "run" / METRICS_FILE).read_text()) == {"step": 1, "env/return": 2.0}
    logger.close()


def test_non_finite_numbers_stay_valid_json(tmp_path):
    with open_logger(tmp_path) as logger:
        logger.log(1, {"a": math.nan, "b": math.inf, "c": 1.0})
    assert json.loads(logger.path.read_text(), parse_constant=pytest.fail) == {"step": 1, "a": None, "b": None, "c": 1}
    row = read_metrics(logger.path)[0]
    assert math.isnan(row["a"])
    assert math.isnan(row["b"])


def test_resumed_file_equals_an_uninterrupted_one(tmp_path):
    with open_logger(tmp_path / "whole") as whole:
        log_steps(whole, range(1, 7))
    with open_logger(tmp_path / "resumed") as first:
        log_steps(first, range(1, 6))
    with first.path.open("a") as file:
        file.write('{"step": 6, "env/succ')
    with open_logger(tmp_path / "resumed") as second:
        second.truncate_after(3)
        log_steps(second, range(4, 7))
    assert second.path.read_bytes() == whole.path.read_bytes()
    assert [row["step"] for row in read_metrics(second.path)] == [1, 2, 3, 4, 5, 6]
    assert [path.name for path in (tmp_path / "resumed").iterdir()] == [METRICS_FILE]


def test_reading_leaves_out_a_torn_line(tmp_path):
    path = tmp_path / METRICS_FILE
    path.write_text('{"step": 1, "a": 0.5}\n{"step": 2, "a"')
    assert read_metrics(path) == [{"step": 1, "a": 0.5}]


@pytest.mark.parametrize("text", ["not json\n", "[1]\n", '{"a": 1}\n'])
def test_reading_something_else_says_where(tmp_path, text, caplog):
    path = tmp_path / METRICS_FILE
    path.write_text('{"step": 1}\n' + text)
    assert read_metrics(path) == [{"step": 1}]
    assert f"{path}: damaged lines are left out: 1, the first of them line 2" in caplog.text


def test_reading_without_a_file(tmp_path):
    with pytest.raises(UserError, match="no metrics"):
        read_metrics(tmp_path / METRICS_FILE)


def test_tensorboard_forgets_later_steps_too(tmp_path):
    with open_logger(tmp_path, ["tensorboard"]) as logger:
        log_steps(logger, range(1, 6))
        logger.truncate_after(2)
        logger.log(3, {"env/success_once": 0.9})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    scalars = [(event.step, event.value) for event in events.Scalars("env/success_once")]
    assert scalars == [(1, pytest.approx(0.1)), (2, pytest.approx(0.2)), (3, pytest.approx(0.9))]
    assert "config/text_summary" in events.Tags()["tensors"]


def test_unknown_backend_lists_the_known_ones(tmp_path):
    with pytest.raises(UserError, match="tensorboard, wandb, swanlab") as caught:
        open_logger(tmp_path, ["tensorbord"])
    assert caught.value.key == "runner.logger.logger_backends"


@pytest.mark.parametrize("name", ["wandb", "swanlab"])
def test_missing_package_names_the_extra(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError) as caught:
        open_logger(tmp_path, [name])
    assert f'pip install "{name}>=' in str(caught.value)


class FakeService:
    """What Regrasp calls of `wandb` and `swanlab`, without either."""

    Error = ValueError

    def __init__(self, **refuses):
        self.calls = []
        self.refuses = refuses

    def setup(self):
        return SimpleNamespace(settings=SimpleNamespace(mode="online", base_url="http://localhost:9"))

    def _call(self, name, /, *given, **named):
        self.calls.append((name, *given, *([named] if named else [])))
        if name in self.refuses:
            raise self.refuses[name]
        return True

    def __getattr__(self, name):
        return lambda *given, **named: self._call(name, *given, **named)


@pytest.fixture
def wandb(monkeypatch):
    service = FakeService()
    monkeypatch.setitem(sys.modules, "wandb", service)
    monkeypatch.setattr("regrasp.logging.backends._answers", lambda url: True)
    return service


def test_services_get_the_name_of_the_run_settings_and_scalars(tmp_path, wandb, monkeypatch):
    swanlab = FakeService()
    monkeypatch.setitem(sys.modules, "swanlab", swanlab)
    run = tmp_path / "20260101-120000-Task_mine"
    with open_logger(run, ["wandb", "swanlab"]) as logger:
        logger.log(4, {"eval/return": 1})
    shared = {"project": "p", "config": {"seed": 1}, "id": "0a1b", "resume": "allow"}
    assert wandb.calls == [
        ("login", {"verify": False}),
        ("login", {"verify": True}),
        ("init", {"name": run.name, "group": "e", "dir": str(run), "mode": "online", **shared}),
        ("log", {"eval/return": 1.0}, {"step": 4}),
        ("finish",),
    ]
    login, init, *rest = swanlab.calls
    assert login == ("login",)
    assert init == ("init", {"experiment_name": run.name, "logdir": str(run / "swanlab"), "mode": "online", **shared})
    assert rest == [("log", {"eval/return": 1.0}, {"step": 4}), ("finish",)]


def test_swanlab_without_a_key_is_an_error_and_out_of_reach_it_records_here(tmp_path, monkeypatch, caplog):
    swanlab = FakeService(login=RuntimeError("no TTY is available"))
    monkeypatch.setitem(sys.modules, "swanlab", swanlab)
    monkeypatch.setenv("SWANLAB_API_HOST", "http://localhost:9")
    with open_logger(tmp_path, ["swanlab"]):
        assert swanlab.calls[0][1]["mode"] == "offline"
    assert "http://localhost:9) does not answer" in caplog.text
    monkeypatch.setattr("regrasp.logging.backends._answers", lambda url: True)
    with pytest.raises(UserError, match="no TTY is available"):
        prepare_backends(["swanlab"])


@pytest.mark.parametrize("refuses", ["init", "log", "finish"])
def test_a_service_that_fails_is_reported_once_and_costs_nothing(tmp_path, wandb, caplog, refuses):
    wandb.refuses = {refuses: RuntimeError("connection lost")}
    with open_logger(tmp_path, ["wandb"]) as logger:
        log_steps(logger, range(1, 4))
    assert [row["step"] for row in read_metrics(logger.path)] == [1, 2, 3]
    assert caplog.text.count("wandb failed, and the run goes on: connection lost") == 1


def test_a_service_that_does_not_end_is_left(tmp_path, wandb, caplog, monkeypatch):
    helpers, hangs = [], threading.Event()
    setup = wandb.setup

    def starts(returned):
        helpers.append(subprocess.Popen(["sleep", "600"]))
        return returned

    wandb.setup, wandb.init, wandb.finish = lambda: starts(setup()), lambda **_given: starts(None), hangs.wait
    monkeypatch.setattr("regrasp.logging.backends._FINISH_SECONDS", 0.2)
    backends = prepare_backends(["wandb"])
    other = subprocess.Popen(["sleep", "600"])
    with MetricsLogger(TrackedRun(tmp_path, "p", "e", "0a1b", "seed: 1"), backends) as logger:
        log_steps(logger, [1])
    hangs.set()
    assert caplog.text.count("wandb failed, and the run goes on: it did not end within") == 1
    for helper in helpers:
        assert helper.wait(10) == -signal.SIGKILL, "what waits for it at the end of the process does not wait"
    assert len(helpers) == 2
    assert other.poll() is None
    other.kill()
    other.wait()


def test_what_a_service_missed_is_sent_later(tmp_path, wandb):
    with open_logger(tmp_path, ["wandb"]) as logger:
        wandb.refuses = {"log": RuntimeError("busy")}
        log_steps(logger, range(1, 4))
        wandb.refuses, wandb.calls = {}, []
        log_steps(logger, [4])
    assert [call[2]["step"] for call in wandb.calls if call[0] == "log"] == [1, 2, 3, 4]


def test_a_service_that_does_not_know_the_user_is_an_error_before_the_run(tmp_path, wandb):
    wandb.refuses = {"login": ValueError("No API key configured.")}
    with pytest.raises(UserError, match="No API key configured") as caught:
        prepare_backends(["wandb"])
    assert "WANDB_MODE=offline" in str(caught.value)


def test_a_service_out_of_reach_leaves_the_run_in_its_folder(tmp_path, monkeypatch, caplog):
    wandb = FakeService()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    with open_logger(tmp_path, ["wandb"]):
        pass
    assert next(call[1]["mode"] for call in wandb.calls if call[0] == "init") == "offline"
    assert "http://localhost:9) does not answer" in caplog.text


def test_a_server_that_says_nothing_is_given_up(monkeypatch):
    monkeypatch.setattr("regrasp.logging.backends._REACH_SECONDS", 0.3)
    with socket.create_server(("localhost", 0)) as silent:
        assert not _answers(f"http://localhost:{silent.getsockname()[1]}")


def test_a_removed_tensorboard_folder_is_made_again(tmp_path):
    with open_logger(tmp_path, ["tensorboard"]) as logger:
        log_steps(logger, [1])
        shutil.rmtree(tmp_path / "tensorboard")
        log_steps(logger, [2])
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("env/success_once")] == [2]


def test_a_full_disk_costs_no_line(tmp_path, monkeypatch, caplog):
    write = os.write

    def half(descriptor, data):
        write(descriptor, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    with open_logger(tmp_path, ["tensorboard"]) as logger:
        log_steps(logger, [1])
        monkeypatch.setattr(os, "write", half)
        log_steps(logger, [2, 3])
        assert [row["step"] for row in read_metrics(logger.path)] == [1]
        monkeypatch.setattr(os, "write", write)
        log_steps(logger, [4])
    assert [row["step"] for row in read_metrics(logger.path)] == [1, 2, 3, 4]
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("env/success_once")] == [1, 2, 3, 4]
    assert caplog.text.count("No space left") == 2
