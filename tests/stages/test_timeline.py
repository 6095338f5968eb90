"""A run is one timeline: going on from an earlier step is a branch, and nobody else writes into it meanwhile."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from run_toys import SMALL, checkpoint, metrics, mlp_experiment, same_weights, saved_steps

from regrasp.checkpoint.read import find_checkpoint
from regrasp.checkpoint.run_record import LOCK_FILE, RECORD_FILE, RunRecord, only_writer, run_of
from regrasp.cli.main import main
from regrasp.errors import UserError
from regrasp.models.registry import load_policy
from regrasp.stages.train import train

TRAIN = ["train", "--config_name", "pick_cube_ppo_mlp", *SMALL, "runner.val_check_interval=-1"]


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """Four updates, each with its checkpoint."""
    return shutil.copytree(finished_run, tmp_path / "run")


def go_on(run: Path, start_model: Path, *overrides: str) -> bool:
    settings = (f"actor.model.model_path={start_model}", "runner.val_check_interval=-1", "actor.optim.lr=1e-2")
    return train(mlp_experiment(*settings, *overrides), run)


def test_going_on_from_an_earlier_step_sets_the_later_ones_aside(
    run: Path, start_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = shutil.copytree(run, run.with_name("before"))
    resume = f"runner.resume_dir={checkpoint(run, 1)}"
    assert go_on(run, start_model, resume, "runner.max_epochs=2")
    aside = checkpoint(run, 1).parent / "set_aside_after_step_1"
    assert str(aside) in caplog.text
    assert saved_steps(run) == [1, 2]
    assert find_checkpoint(run) == checkpoint(run, 2)
    assert not same_weights(checkpoint(run, 2), checkpoint(before, 2))
    assert [line["step"] for line in metrics(run)] == [1, 2]
    assert metrics(aside) == metrics(before)[1:]
    for step in (2, 3, 4):
        assert same_weights(aside / f"global_step_{step}", checkpoint(before, step))
    assert go_on(run, start_model, resume, "runner.max_epochs=2")
    assert same_weights(aside.with_name(f"{aside.name}.2") / "global_step_2", checkpoint(run, 2))


def test_the_newest_is_what_the_run_wrote_last(run: Path, start_model: Path) -> None:
    foreign = shutil.copytree(checkpoint(run, 3), checkpoint(run, 9))
    assert find_checkpoint(run) == checkpoint(run, 4)
    assert run_of(foreign) is None
    assert go_on(run, start_model, f"runner.resume_dir={run}", "runner.max_epochs=5", "runner.keep_checkpoints=1")
    assert saved_steps(run) == [5], "the foreign one is later than step 4, and so it was set aside"
    assert (foreign.parent / "set_aside_after_step_4" / foreign.name).is_dir()


def test_pruning_keeps_the_present_timeline(run: Path, start_model: Path) -> None:
    resume = f"runner.resume_dir={checkpoint(run, 1)}"
    assert go_on(run, start_model, resume, "runner.keep_checkpoints=2", "runner.max_epochs=3")
    assert saved_steps(run) == [2, 3]


def test_a_run_of_an_earlier_version_is_known_by_its_folders(run: Path, start_model: Path) -> None:
    (run / RECORD_FILE).unlink()
    (run / "config.yaml").write_text("{}")
    assert find_checkpoint(run) == checkpoint(run, 4)
    assert run_of(checkpoint(run, 2)) == run
    assert go_on(run, start_model, f"runner.resume_dir={checkpoint(run, 2)}", "runner.max_epochs=3")
    assert find_checkpoint(run) == checkpoint(run, 3)


@pytest.mark.parametrize("place", ["a/b", "global", "one/checkpoints", "run/small/checkpoints/best"])
def test_a_copied_checkpoint_begins_a_new_run(
    finished_run: Path, start_model: Path, tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished_run, tmp_path / "run")
    copy = shutil.copytree(checkpoint(finished_run, 2), tmp_path / place / "global_step_2")
    above = copy.parents[2] / "metrics.jsonl"
    if not above.exists():
        above.write_text('{"step": 7, "precious": 1}\n')
    monkeypatch.chdir(tmp_path)
    kept = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert main([*TRAIN, "runner.max_epochs=3", "--model_path", str(start_model), "--resume_dir", str(copy)]) == 0
    assert {file: file.read_bytes() for file in kept} == kept
    (new,) = (tmp_path / "logs/regrasp").iterdir()
    assert saved_steps(new) == [3]
    assert [line["step"] for line in metrics(new)] == [3]


def test_a_checkpoint_below_the_root_of_the_disk(finished_run: Path) -> None:
    assert run_of(Path("/global_step_2")) is None
    assert run_of(checkpoint(finished_run, 2)) == finished_run


def test_one_writer_at_a_time(run: Path, start_model: Path) -> None:
    with only_writer(run), pytest.raises(UserError, match="Another process") as caught:
        go_on(run, start_model, f"runner.resume_dir={run}", "runner.max_epochs=5")
    assert "process" in str(caught.value.value)
    assert saved_steps(run) == [1, 2, 3, 4]
    assert go_on(run, start_model, f"runner.resume_dir={run}", "runner.max_epochs=5")


def test_the_lock_of_a_dead_process_is_none(run: Path, start_model: Path) -> None:
    hold = f"import fcntl, os; fcntl.flock(os.open({str(run / LOCK_FILE)!r}, os.O_RDWR), fcntl.LOCK_EX); os.abort()"
    assert subprocess.run([sys.executable, "-c", hold], check=False).returncode != 0
    assert go_on(run, start_model, f"runner.resume_dir={run}", "runner.max_epochs=5")


@pytest.mark.parametrize(
    "damage", [b"\0" * 4096, b"{\n", b'{"step": "5"}\n', b'{"step": 5, "a": [1]}\n', b"\xff\xfe\n"]
)
def test_a_damaged_line_of_metrics_is_cut(
    run: Path, start_model: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(damage)
    assert go_on(run, start_model, f"runner.resume_dir={run}", "runner.max_epochs=5")
    assert "damaged lines are left out: 1" in caplog.text
    assert [line["step"] for line in metrics(run)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[]",
        '{"checkpoints": 3}',
        '{"checkpoints": [1]}',
        '{"checkpoints": ["../x/global_step_1"]}',
        '{"checkpoints": [], "tracking_id": 3}',
        '{"checkpoints": [], "tracking_id": "../x"}',
    ],
)
def test_a_damaged_record_is_refused(run: Path, content: str) -> None:
    (run / RECORD_FILE).write_text(content)
    with pytest.raises(UserError, match="record is damaged") as caught:
        find_checkpoint(run)
    assert caught.value.file == str(run / RECORD_FILE)


def test_services_know_a_resumed_run_again_and_a_branch_as_a_new_one(run: Path) -> None:
    begun = RunRecord(run).tracking_id(None)
    assert RunRecord(run).tracking_id(4) == begun
    branch = RunRecord(run).tracking_id(2)
    assert branch != begun
    record = RunRecord(run)
    record.end_at(2)
    assert RunRecord(run).tracking_id(2) == branch


def test_a_crash_between_record_and_checkpoint_loses_nothing(run: Path) -> None:
    record = RunRecord(run)
    record.add(checkpoint(run, 5))
    assert find_checkpoint(run) == checkpoint(run, 4)
    assert json.loads((run / RECORD_FILE).read_text())["checkpoints"][-1] == "small/checkpoints/global_step_5"


def test_a_damaged_model_in_a_checkpoint_is_not_used(run: Path, start_model: Path) -> None:
    weights = checkpoint(run, 4) / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(UserError, match=r"model/model\.safetensors is damaged"):
        load_policy(weights.parent)
    assert go_on(run, start_model, f"runner.resume_dir={run}", "runner.max_epochs=5")
