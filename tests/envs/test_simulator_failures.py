"""Simulators that fail, die or fall silent, and what is left of them."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields
from pathlib import Path

import psutil
import pytest
import torch
from vec_envs import HERE, TOY, all_gone, is_alive, make_env, worker_pids

from regrasp.envs.config import TimeoutsConfig
from regrasp.envs.mapping_config import MappingConfig
from regrasp.envs.process import protocol
from regrasp.envs.process.output import OutputTail
from regrasp.envs.process.process import SimulatorProcess
from regrasp.envs.process.simulator import RESERVED_MEASURES, ArraySpec, SimulatorSpec, with_tuples
from regrasp.envs.process.vector import RemoteVecEnv
from regrasp.errors import SimulatorError, UserError
from regrasp.logging.metrics import ENV_STEPS, EPISODE_METRICS
from regrasp.rollout.episodes import EpisodeResult

SHORT = TimeoutsConfig(startup_s=60.0, reset_s=0.6, step_s=0.8)


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Every test of this file ends without child processes."""
    children = {child.pid for child in psutil.Process().children()}
    yield
    left = [child for child in psutil.Process().children(recursive=True) if child.pid not in children]
    assert [child for child in left if child.status() != psutil.STATUS_ZOMBIE] == []


def zeros(env: RemoteVecEnv, steps: int = 2) -> torch.Tensor:
    return torch.zeros(env.spec.num_envs, steps, env.spec.action_dim)


def faulty(at: str, kind: str, seed: int | None = None, **settings) -> RemoteVecEnv:
    return make_env(TOY, num_envs=2, num_workers=2, fault={"at": at, "kind": kind, "seed": seed}, **settings)


def reset_and_step(env: RemoteVecEnv) -> None:
    env.reset([0, 1], [0, 1])
    env.step(zeros(env))


def live(at: str, kind: str) -> None:
    """A short life of a faulty simulator, closed whatever happens."""
    env = faulty(at, kind)
    try:
        reset_and_step(env)
    finally:
        env.close()


def close_within(env: RemoteVecEnv, seconds: float, deadline: float = 10.0) -> None:
    pids = worker_pids(env)
    start = time.monotonic()
    env.close(deadline)
    assert time.monotonic() - start < seconds
    assert not any(is_alive(pid) for pid in pids)


@pytest.mark.parametrize(("at", "method"), [("reset", "reset"), ("step", "advance"), ("observe", "observe")])
def test_an_exception_arrives_with_its_traceback_and_closing_is_quick(at: str, method: str):
    env = faulty(at, "raise", seed=1)
    with pytest.raises(SimulatorError) as caught:
        reset_and_step(env)
    close_within(env, 3.0)
    text = str(caught.value)
    assert "train environments 1-1 failed in" in text
    assert "RuntimeError: the motor of seed 1 burnt out" in text
    assert "toy_simulator.py" in text
    assert f"in {method}" in text


def test_an_exception_at_the_start_leaves_nothing_running():
    with pytest.raises(SimulatorError, match=r"environments .* failed in 'hello': RuntimeError"):
        faulty("create", "raise")


def test_an_unknown_factory_is_named():
    process = SimulatorProcess("eval environments 0-1", "no_such_simulator:create", {}, TimeoutsConfig())
    with pytest.raises(SimulatorError, match="No module named 'no_such_simulator'"):
        process.wait_until_ready()
    process.request_close()
    process.close(5.0)


@pytest.mark.parametrize("kind", ["exit", "kill"])
@pytest.mark.parametrize("at", ["create", "reset", "step"])
def test_a_death_is_told_at_once_with_its_cause(at: str, kind: str):
    start = time.monotonic()
    with pytest.raises(SimulatorError) as caught:
        live(at, kind)
    assert time.monotonic() - start < 5
    text = str(caught.value)
    assert "train environments " in text
    if kind == "exit":
        assert "exited with code 7" in text
        assert "license expired" in text
    else:
        assert "was killed by signal 9" in text
        assert "It printed nothing" in text


@pytest.mark.parametrize(
    "call",
    [
        lambda env: env.step(zeros(env)),
        lambda env: env.record([0, 1]),
        lambda env: env.state_dict(),
        lambda env: env.reset([1], [0]),
    ],
    ids=["step", "record", "state_dict", "reset"],
)
def test_a_process_killed_from_outside_is_noticed_by_the_next_call(call: Callable[[RemoteVecEnv], object]):
    env = make_env(TOY, num_envs=2, num_workers=2)
    env.reset([0, 1], [0, 1])
    pid = worker_pids(env)[1]
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(SimulatorError, match=rf"train environments 1-1 \(process {pid}\) was killed by signal 9"):
        call(env)
    close_within(env, 3.0)


def test_a_death_is_told_while_another_worker_is_still_busy():
    env = make_env(TOY, num_envs=2, num_workers=2, fault={"at": "step", "kind": "hang", "seed": 0})
    env.reset([0, 1], [0, 1])
    pid = worker_pids(env)[1]
    os.kill(pid, signal.SIGSTOP)
    start = time.monotonic()
    killer = subprocess.Popen([sys.executable, "-c", f"import os, time; time.sleep(0.5); os.kill({pid}, 9)"])
    with pytest.raises(SimulatorError, match=r"train environments 1-1 .* was killed by signal 9"):
        env.step(zeros(env))
    assert time.monotonic() - start < 5
    killer.wait()
    close_within(env, 2.0, deadline=0.5)


@pytest.mark.parametrize(
    ("at", "kind", "deadline"), [("reset", "hang", 0.6), ("step", "hang", 0.8), ("step", "block", 0.8)]
)
def test_silence_ends_at_the_deadline(at: str, kind: str, deadline: float):
    env = faulty(at, kind, timeouts=SHORT)
    start = time.monotonic()
    with pytest.raises(SimulatorError, match=r"did not answer .* within its deadline") as caught:
        reset_and_step(env)
    waited = time.monotonic() - start
    close_within(env, 1.5, deadline=0.3)
    assert waited == pytest.approx(deadline, abs=1.0)
    assert "train environments 0-0" in str(caught.value)
    assert ("waiting for a sensor" in str(caught.value)) == (kind == "hang")


def test_a_silent_start_ends_at_its_deadline():
    process = SimulatorProcess(
        "eval environments 0-1",
        "toy_simulator:create",
        {"num_envs": 1, "fault": {"at": "create", "kind": "hang"}},
        TimeoutsConfig(startup_s=0.6),
        environment={"PYTHONPATH": HERE},
    )
    start = time.monotonic()
    with pytest.raises(SimulatorError, match=r"eval environments 0-1 .* did not answer 'hello'"):
        process.wait_until_ready()
    assert time.monotonic() - start == pytest.approx(0.6, abs=1.0)
    process.close(1.0)


def test_closing_a_silent_simulator_takes_no_longer_than_its_deadline():
    env = faulty("close", "hang")
    env.reset([0, 1], [0, 1])
    close_within(env, 2.0, deadline=0.5)


def test_closing_while_a_command_runs_is_quick():
    """After one worker's failure the replies of the others have not been read."""
    env = faulty("step", "raise", seed=0)
    env.reset([0, 1], [0, 1])
    with pytest.raises(SimulatorError):
        env.step(zeros(env))
    close_within(env, 3.0)


def test_closing_twice_and_without_a_reset_is_fine():
    env = make_env(TOY, num_envs=1)
    close_within(env, 3.0)
    env.close()


def test_processes_started_by_a_hanging_simulator_go_with_it():
    env = make_env(TOY, num_envs=1, fault={"at": "reset", "kind": "spawn", "seed": 0})
    env.reset([0], [0])
    (worker,) = worker_pids(env)
    grandchildren = [child.pid for child in psutil.Process(worker).children()]
    assert len(grandchildren) == 1
    os.kill(worker, signal.SIGSTOP)
    close_within(env, 2.0, deadline=0.3)
    assert all_gone(grandchildren)


def test_what_a_simulator_prints_does_not_disturb():
    env = faulty("step", "print")
    env.reset([0, 1], [0, 1])
    assert env.step(zeros(env, 4)).num_executed.tolist() == [4, 4]
    env.close()


def test_what_a_simulator_prints_does_not_fill_the_disk():
    env = make_env(TOY, num_envs=1, lengths=[1000], max_episode_steps=1000, fault={"at": "step", "kind": "print"})
    env.reset([0], [0])
    (pid,) = worker_pids(env)
    sizes = []
    for _ in range(8):
        env.step(zeros(env, 4))  # prints 0.8 MB
        sizes.append(Path(f"/proc/{pid}/fd/1").stat().st_size)
    assert max(sizes) <= 2**21
    assert min(sizes[2:]) >= 2**20
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(SimulatorError, match=r"It last said:\nx{2999}$"):
        env.step(zeros(env, 4))
    env.close()


def test_of_what_is_printed_the_end_is_kept():
    code = "for number in map(int, iter(input, '')): print(f'line {number:.>1000}\\n' * 1200, end='', flush=True)"
    output = OutputTail()
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=output.fileno(), text=True)
    assert child.stdin is not None
    with child.stdin:
        for number in range(5):
            before = os.fstat(output.fileno()).st_size
            print(number, file=child.stdin, flush=True)
            while os.fstat(output.fileno()).st_size < before + 1200 * 1006:
                time.sleep(0.001)
            output.trim()
            assert os.fstat(output.fileno()).st_size <= 2**21
            assert output.text(2 * 1006) == "\n".join([f"line {number:.>1000}"] * 2)
        print(file=child.stdin)
    child.wait()
    output.close()


@pytest.mark.parametrize("at", ["step", "observe"])
def test_not_a_number_reaches_the_caller_as_it_is(at: str):
    """It is the caller who stops the run, naming the environment."""
    env = faulty(at, "nan", seed=1)
    env.reset([0, 1], [0, 1])
    step = env.step(zeros(env))
    env.close()
    seen = step.rewards if at == "step" else step.observation.state["state"]
    assert torch.isfinite(seen[0]).all()
    assert torch.isnan(seen[1]).any()


def test_an_interpreter_that_does_not_exist_is_the_users_mistake():
    with pytest.raises(UserError, match=r"env\.<train\|eval>\.python") as caught:
        make_env(TOY, num_envs=1, python="/opt/no/such/python")
    assert caught.value.value == "/opt/no/such/python"


def test_an_interpreter_that_is_none_is_told_with_what_it_said():
    with pytest.raises(SimulatorError, match="exited with code 0"):
        make_env(TOY, num_envs=1, python="/bin/true")


def test_an_interpreter_without_numpy_says_so(tmp_path: Path):
    interpreter = tmp_path / "python"
    interpreter.write_text(f'#!/bin/sh\nunset PYTHONPATH\nexec {os.path.realpath(sys.executable)} -I -S "$@"\n')
    interpreter.chmod(0o755)
    with pytest.raises(SimulatorError, match="No module named 'numpy'"):
        make_env(TOY, num_envs=1, python=str(interpreter))


def test_another_protocol_version_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(protocol, "VERSION", 99)
    with pytest.raises(SimulatorError, match="protocol version 1 here, 99 there"):
        make_env(TOY, num_envs=1)


def test_an_error_in_the_mapping_ends_the_processes():
    with pytest.raises(UserError, match="no observation named 'top_camera'"):
        make_env(TOY, num_envs=2, num_workers=2, mapping=MappingConfig(main_images="top_camera"))


PARENT = """
import sys, time
from regrasp.envs.config import TimeoutsConfig
from regrasp.envs.process.process import SimulatorProcess

def start(kind):
    settings = {"num_envs": 1, "fault": {"at": "create", "kind": kind}}
    python_path = {"PYTHONPATH": sys.argv[1]}
    return SimulatorProcess(kind, "toy_simulator:create", settings, TimeoutsConfig(), environment=python_path)

simulators = [start(kind) for kind in ("idle", "hang", "block")]
simulators[0].wait_until_ready()
print(*(simulator.pid for simulator in simulators), flush=True)
time.sleep(60)
"""

RENDERING_PARENT = """
import sys, time
sys.path.insert(0, sys.argv[1])
from vec_envs import PICK, make_env, worker_pids

env = make_env(PICK, num_envs=2, num_workers=2)
env.reset([0, 1], [0, 1])
print(*worker_pids(env), flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("script", "ending"), [(PARENT, signal.SIGKILL), (PARENT, signal.SIGTERM), (RENDERING_PARENT, signal.SIGKILL)]
)
def test_simulators_do_not_outlive_their_parent(script: str, ending: signal.Signals):
    """Idle, asleep in Python, in a native call that keeps Python's lock, or with a graphics context."""
    parent = subprocess.Popen([sys.executable, "-c", script, HERE], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        pids = [int(word) for word in parent.stdout.readline().split()]
    time.sleep(0.5)
    assert len(pids) >= 2
    assert all(is_alive(pid) for pid in pids)
    parent.send_signal(ending)
    parent.wait()
    assert all_gone(pids)


def test_a_simulator_outlives_the_thread_that_started_it():
    """Environments may be started from a thread pool."""
    with ThreadPoolExecutor(1) as pool:
        env = pool.submit(make_env, TOY, 1).result()
    time.sleep(0.2)
    assert len(env.reset([0], [0])) == 1
    env.close()


def test_a_message_may_arrive_in_pieces_and_must_arrive_in_time():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        protocol.send(theirs, {"op": "x" * 100_000, "number": 2**53 - 1})
        assert protocol.receive(ours, 1.0) == {"op": "x" * 100_000, "number": 2**53 - 1}
        theirs.sendall(b"\0\0\0\x10{")
        start = time.monotonic()
        with pytest.raises(TimeoutError):
            protocol.receive(ours, 0.3)
        assert time.monotonic() - start == pytest.approx(0.3, abs=0.2)
        theirs.close()
        with pytest.raises(protocol.ConnectionClosedError):
            protocol.receive(ours, 0.3)


def test_shared_arrays_are_zeroed_aligned_disjoint_and_the_same_on_both_sides():
    ours, theirs = socket.socketpair()
    shapes = {
        "flag": ArraySpec((3,), "bool"),
        "empty": ArraySpec((3, 0), "float64"),
        "x": ArraySpec((3, 5), "float64"),
        "last": ArraySpec((3,), "int32"),
    }
    shared = protocol.SharedArrays.create(shapes)
    with ours, theirs:
        shared.send_to(ours, {"op": "attach"}, slice(0, 3))
        received = protocol.SharedArrays.receive_from(theirs, protocol.receive(theirs))
    assert {name: (array.shape, array.dtype.name) for name, array in received.items()} == shapes
    assert not any(array.any() for array in received.values())
    assert all(array.ctypes.data % 64 == 0 for array in received.values())
    for number, array in enumerate(shared.arrays.values()):
        array[...] = number
    assert [(array == number).all() for number, array in enumerate(received.values())] == [True] * 4
    shared.close()
    assert (received["last"] == 3).all(), "the mapping lives as long as an array"


def test_shared_memory_has_no_name_that_could_be_left_behind():
    env = make_env(TOY, num_envs=2)
    env.record([0])
    maps = [Path(f"/proc/{pid}/maps").read_text().splitlines() for pid in (os.getpid(), *worker_pids(env))]
    env.close()
    for lines in maps:
        shared = [line for line in lines if "/dev/shm/" in line and "sem." not in line]
        assert shared
        assert all(line.endswith("(deleted)") for line in shared)


@pytest.mark.parametrize(
    ("offer", "key", "expected"),
    [
        (
            {"raw_observations": {"policy/position": [[2], "object"]}},
            "raw_observations['policy/position'].dtype",
            "float32",
        ),
        (
            {"raw_observations": {"policy/position": [[2], "V8"]}},
            "raw_observations['policy/position'].dtype",
            "float32",
        ),
        (
            {"raw_observations": {"policy/position": [[-2], "float32"]}},
            "raw_observations['policy/position'].shape",
            "1",
        ),
        (
            {"raw_observations": {"policy/position": [[2.0], "float32"]}},
            "raw_observations['policy/position'].shape",
            "1",
        ),
        ({"raw_observations": {"policy/position": "float32"}}, "raw_observations", "(shape, dtype)"),
        ({"action_dim": -1}, "action_dim", "at least 1"),
        ({"action_dim": True}, "action_dim", "at least 1"),
        ({"state_size": -1}, "state_size", "at least 0"),
        ({"max_episode_steps": 0}, "max_episode_steps", "at least 1"),
        ({"step_seconds": 0.0}, "step_seconds", "above 0"),
        ({"instructions": []}, "instructions", "tuple"),
        ({"info": ["distance", "distance"]}, "info", "tuple"),
        ({"capabilities": {"flies": True}}, "capabilities", "partial_reset"),
        ({"capabilities": {"partial_reset": "yes"}}, "capabilities", "true or false"),
    ],
)
def test_a_simulator_that_describes_what_cannot_be_is_refused_before_memory_is_shared(
    offer: dict[str, object], key: str, expected: str
):
    with pytest.raises(UserError) as caught:
        make_env(TOY, offer=offer)
    assert caught.value.key == key
    assert expected in (caught.value.expected or "")


@pytest.mark.parametrize(
    "wrong", [{"instructions": ()}, {"info": ("distance", "distance")}, {"info": ("success_once",)}]
)
def test_names_of_instructions_and_measures_are_checked(wrong: dict[str, tuple[str, ...]]):
    sizes = {"raw_observations": {}, "action_dim": 1, "step_seconds": 0.1, "max_episode_steps": 1}
    with pytest.raises(UserError, match="describes itself") as caught:
        SimulatorSpec(**{"task_id": "Toy-v0", "instructions": ("go",), **sizes, **wrong})
    assert caught.value.key in wrong


def test_no_measure_of_a_task_replaces_what_every_task_has():
    assert {*EPISODE_METRICS, ENV_STEPS.partition("/")[2], "episode"} <= RESERVED_MEASURES
    assert {field.name for field in fields(EpisodeResult)} - {"info"} <= RESERVED_MEASURES


def test_an_instruction_that_was_never_described_is_an_error():
    env = faulty("reset", "foreign instruction")
    try:
        with pytest.raises(SimulatorError, match=r"instructions .*-1"):
            env.reset([0, 1], [0, 1])
    finally:
        env.close()


def test_the_offer_survives_json():
    spec = SimulatorSpec(
        "id",
        {"a/b": ArraySpec((2, 3), "uint8"), "a/c": ArraySpec((), "float32")},
        4,
        ("x", "y"),
        0.1,
        7,
        0,
        ("z",),
        True,
    )
    assert SimulatorSpec(**with_tuples(json.loads(json.dumps(asdict(spec))))) == spec


def test_shared_memory_that_is_full_is_an_error_before_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(UserError, match="Shared memory is too small for another"):
        make_env(TOY, num_envs=2, num_workers=2)
