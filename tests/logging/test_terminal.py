import io
import itertools
import math
import re

import pytest
from rich.console import Console

from regrasp.algorithms.base import AlgorithmConfig
from regrasp.algorithms.grpo import GrpoConfig
from regrasp.algorithms.ppo import PpoConfig
from regrasp.algorithms.sac_config import EntropyTuningConfig, SacConfig
from regrasp.logging import console as console_module
from regrasp.logging import progress as progress_module
from regrasp.logging.console import ConsoleTable
from regrasp.logging.progress import progress
from regrasp.logging.text import byte_size, duration, number

ALGORITHMS = {
    "ppo": PpoConfig(),
    "grpo": GrpoConfig(),
    "sac": SacConfig(),
    "sac_fixed_alpha": SacConfig(entropy_tuning=EntropyTuningConfig(alpha_type="fixed_alpha")),
}
PPO = PpoConfig().shown
EPISODES = ("env/success_once", "env/return", "env/episode_len")


def tags(algorithm: AlgorithmConfig) -> list[str]:
    shown = [f"train/{column.tag}" for column in algorithm.shown]
    return [*EPISODES, *shown, "time/env_steps_per_second"]


@pytest.fixture
def log_file():
    return Console(file=io.StringIO(), width=80, force_terminal=False)  # narrower than a row, as a log file may be


@pytest.fixture
def clock(monkeypatch):
    """One second passes every time somebody looks."""
    ticks = itertools.count()
    for module in (console_module, progress_module):
        monkeypatch.setattr(module.time, "monotonic", lambda: float(next(ticks)))


def lines(console):
    return console.file.getvalue().splitlines()


def table_lines(console):
    """The lines from the first header on."""
    printed = lines(console)
    return printed[next(index for index, line in enumerate(printed) if line.split()[0] == "update") :]


@pytest.mark.parametrize(
    "value", [0.0, 1.0, -1.0, 1e-9, -1.23456e-5, 0.123456, -123.456, 99999.96, -123456.7, 1e30, -1e-300, math.nan]
)
@pytest.mark.parametrize("total", [9, 1000, 10**8])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_rows_keep_their_columns_and_100_characters(log_file, name, value, total):
    algorithm = ALGORITHMS[name]
    table = ConsoleTable(total, algorithm.shown, log_file)
    share = min(1.0, abs(value))
    for step in (1, total):
        table.row(step, {tag: share if "success" in tag or "fraction" in tag else value for tag in tags(algorithm)})
    assert max(map(len, lines(log_file))) <= 100
    header, *rows = table_lines(log_file)
    assert len({len(line) for line in [header, *rows]}) == 1
    assert all(len(row.split()) == len(header.split()) == 7 + len(algorithm.shown) for row in rows)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_column_is_explained_once(log_file, name):
    algorithm = ALGORITHMS[name]
    table = ConsoleTable(50, algorithm.shown, log_file)
    table.row(1, {"env/return": 1.0})
    for step in range(2, 50):
        table.row(step, {"env/success_once": 0.5})
    text = " ".join(lines(log_file))
    for column in algorithm.shown:
        assert text.count(f"{column.title}: {column.meaning}") == 1
    assert text.count("success: share of") == 1


def test_columns_are_those_of_the_algorithm():
    titles = {name: [column.title for column in algorithm.shown] for name, algorithm in ALGORITHMS.items()}
    assert {"value", "EV"} <= set(titles["ppo"])
    assert titles["grpo"] == [title for title in titles["ppo"] if title not in ("value", "EV")]
    assert not {"KL", "clip", "ratio", "value"} & set(titles["sac"])
    assert [title for title in titles["sac"] if title not in titles["sac_fixed_alpha"]] == ["alpha"]


def test_missing_metrics_are_dashes_and_the_header_comes_back(log_file):
    table = ConsoleTable(50, PPO, log_file)
    for step in range(1, 42):
        table.row(step, {"env/success_once": 0.5})
    printed = table_lines(log_file)
    assert [index for index, line in enumerate(printed) if "success" in line] == [0, 21, 42]
    assert printed[1].split()[3:] == ["50.0%", *["-"] * 11]


def test_success_is_a_column_once_it_is_known(log_file):
    table = ConsoleTable(50, PPO, log_file)
    table.row(1, {"env/return": 2.0})
    assert "success" not in " ".join(lines(log_file))
    table.row(2, {"env/return": 2.0, "env/success_once": 0.5})
    header, row = (line.split() for line in lines(log_file)[-2:])
    assert row[header.index("success")] == "50.0%"
    assert row[header.index("return")] == "2.0000"


def test_an_update_that_learned_nothing_says_so_in_its_row(log_file):
    numbers = {"env/success_once": 0.5, "rollout/decisions": 0.0, "rollout/decisions_dropped": 64.0}
    ConsoleTable(50, PPO, log_file).row(1, {**numbers, "train/actor/lr": 1e-4, "time/env_steps_per_second": 7.0})
    header, row = table_lines(log_file)
    assert len(header) == len(row) == 100
    assert row.split()[3:6] == ["50.0%", "-", "-"]
    assert "no update: nothing was kept to learn from" in row
    assert row.endswith(" 7.0")


def test_an_algorithm_that_shows_nothing_has_the_columns_of_all(log_file):
    ConsoleTable(50, (), log_file).row(1, {"env/return": 0.5, "rollout/decisions": 0.0, "env/episode_len": 3.0})
    header, row = (line.split() for line in table_lines(log_file))
    assert header == ["update", "time", "ETA", "return", "len", "step/s"]
    assert row[3:] == ["0.5000", "3.0", "-"]


def test_time_left_is_the_average_of_the_rows_after_the_first_two(log_file, clock):
    table = ConsoleTable(20, PPO, log_file)  # looks at the clock once; each row once
    table.row(11, {"env/return": 1.0})  # a resumed run
    for _ in range(40):  # something compiles
        console_module.time.monotonic()
    for step in (12, 13, 20):
        table.row(step, {"env/return": 1.0})
    shown = [" ".join(line.split()[:3]) for line in table_lines(log_file)[1:]]
    assert shown == ["11/20 0:01 -", "12/20 0:42 -", "13/20 0:43 0:07", "20/20 0:44 0:00"]


def test_evaluation_line_has_its_interval(log_file):
    table = ConsoleTable(20, PPO, log_file)
    table.row(10, {"eval/success_once": 0.8, "eval/num_trajectories": 10})
    (line,) = lines(log_file)
    assert line.split(maxsplit=1) == ["10/20", "evaluation: success 80.0% [49.0, 94.3] of 10 episodes"]


def test_log_file_gets_few_plain_lines(log_file, clock):
    with progress("roll out", 30, log_file) as task:  # looks at the clock once, then once per advance and per line
        for index in range(30):
            task.advance(success=f"{index} %")
    first, second, last = lines(log_file)
    assert first == "roll out:  33% 10/30  0:11  ETA 0:22  success 9 %"
    assert second.startswith("roll out:  67% 20/30")
    assert last.startswith("roll out: 100% 30/30")
    assert "ETA" not in last


@pytest.mark.parametrize(("items", "seconds", "known"), [(2, 60.0, False), (3, 0.5, False), (3, 0.7, True)])
def test_the_time_left_is_not_guessed_from_the_first_items(
    log_file, monkeypatch: pytest.MonkeyPatch, items: int, seconds: float, known: bool
):
    now = 0.0
    monkeypatch.setattr(progress_module, "_PLAIN_INTERVAL", 0.0)
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now)
    with progress("roll out", 500, log_file) as task:
        for _ in range(items):
            now += seconds
            task.advance()
        assert ("ETA" in lines(log_file)[-1]) == known


@pytest.mark.parametrize(
    ("error", "remark"), [(KeyboardInterrupt, "interrupted"), (InterruptedError, "interrupted"), (ValueError, "failed")]
)
def test_log_file_says_how_a_stage_ended_early(log_file, error, remark):
    def stage():
        with progress("a", 3, log_file) as task:
            task.advance()
            raise error

    with pytest.raises(error):
        stage()
    assert lines(log_file) == [f"a:  33% 1/3  0:00  ({remark})"]


def test_terminal_gets_nested_bars():
    screen = io.StringIO()
    terminal = Console(file=screen, width=100, force_terminal=True)
    with progress("outer [x]", 2, terminal) as outer, progress("inner", 4, terminal) as inner:
        inner.advance(4, success="53 %")
        outer.advance(2)
    plain = re.sub(r"\x1b\[[^A-Za-z]*[A-Za-z]", "", screen.getvalue())
    assert re.search(r"inner .*100%.*success 53 %", plain)
    assert re.search(r"outer \[x\] .*100%", plain)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (3600, "1h00m"), (359999, "99h59m"), (360000, "4d04h")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_unknown_duration():
    assert duration(math.nan) == "-"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0123, "0.0123"),
        (-0.0123, "-0.012"),
        (12345.678, "12346"),
        (1.234e-5, "1.2e-5"),
        (1e7, "1.00e7"),
        (0, "0.0000"),
    ],
)
def test_numbers_keep_the_digits_that_fit(value, text):
    assert number(value, 6) == text


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(3 * 2**29, "1.50 GiB"), (2**30 // 10 + 1, "0.10 GiB"), (2**20, "1.00 MiB"), (0, "0.00 MiB")],
)
def test_small_sizes_are_in_mebibytes(num_bytes: int, text: str):
    assert byte_size(num_bytes) == text
