import json
import math
import sys
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from regrasp.errors import UserError
from regrasp.logging.metrics import METRICS_FILE, MetricsLogger, read_metrics


def open_logger(folder, backends=()):
    return MetricsLogger(folder, project="p", experiment="e", backends=backends, config_text="seed: 1\n")


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


def test_remote_backends_get_settings_and_scalars(tmp_path, monkeypatch):
    calls = []
    wandb = SimpleNamespace(
        init=lambda **given: calls.append(given),
        log=lambda scalars, step: calls.append(("wandb", step, scalars)),
        finish=lambda: calls.append("wandb end"),
    )
    swanlab = SimpleNamespace(
        init=lambda **given: calls.append(given),
        log=lambda scalars, step: calls.append(("swanlab", step, scalars)),
        finish=lambda: calls.append("swanlab end"),
    )
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "swanlab", swanlab)
    with open_logger(tmp_path, ["wandb", "swanlab"]) as logger:
        logger.log(4, {"eval/return": 1})
    assert calls == [
        {"project": "p", "name": "e", "dir": str(tmp_path), "config": {"seed": 1}},
        {"project": "p", "experiment_name": "e", "logdir": str(tmp_path / "swanlab"), "config": {"seed": 1}},
        ("wandb", 4, {"eval/return": 1.0}),
        ("swanlab", 4, {"eval/return": 1.0}),
        "wandb end",
        "swanlab end",
    ]
