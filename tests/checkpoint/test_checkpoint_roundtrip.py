"""Reading gives back what was written, bit for bit."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import regrasp
from regrasp.checkpoint.hub_folder import load_safetensors, save_safetensors
from regrasp.checkpoint.read import load_full_weights, read_checkpoint
from regrasp.checkpoint.verify import verify
from regrasp.checkpoint.write import CheckpointContent, write_checkpoint
from regrasp.errors import UserError


def trained_net(num_steps: int = 3) -> tuple[nn.Module, torch.optim.AdamW]:
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    net[0].requires_grad_(False)
    groups = [{"params": [net[2].weight], "lr": 1e-3}, {"params": [net[2].bias], "lr": np.float64(0.01)}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95))
    for _ in range(num_steps):
        update(net, optimizer, generator)
    return net, optimizer


def update(net: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator) -> None:
    optimizer.zero_grad()
    net(torch.randn(5, 4, generator=generator)).square().mean().backward()
    optimizer.step()


def content_of(net: nn.Module, optimizer: torch.optim.Optimizer) -> CheckpointContent:
    frozen = frozenset(name for name, parameter in net.named_parameters() if not parameter.requires_grad)

    def export(folder: Path) -> None:
        save_safetensors(net.state_dict(), folder, frozen)
        (folder / "config.json").write_text('{"model_type": "test"}')

    return CheckpointContent(
        model_state=net.state_dict(),
        frozen_names=frozen,
        optimizer_state={"policy": optimizer.state_dict()},
        tensors={"generator": torch.Generator().manual_seed(7).get_state(), "env/steps": torch.arange(6).view(2, 3).T},
        state={"counters": {"update": 3}, "seeds": [1, 2**70], "best": float("-inf"), "learning_rate": 0.1 + 0.2},
        export=export,
    )


def assert_equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype
        assert torch.equal(tensor, right[name]), name


def test_round_trip_is_bit_equal(tmp_path: Path) -> None:
    net, optimizer = trained_net()
    content = content_of(net, optimizer)
    folder = write_checkpoint(tmp_path / "checkpoints", 40, content)
    assert folder == tmp_path / "checkpoints" / "global_step_40"
    assert verify(folder) == []
    read = read_checkpoint(folder)
    assert (read.path, read.step) == (folder, 40)
    assert json.loads((folder / "trainer" / "state.json").read_text())["regrasp_version"] == regrasp.__version__
    assert_equal(read.model_state, dict(content.model_state))
    assert_equal(read.tensors, dict(content.tensors))
    assert read.state == content.state
    assert read.frozen_names == {"0.weight", "0.bias"}
    assert read.export == folder / "model"
    assert_equal(load_safetensors(folder / "model"), dict(content.model_state))


def test_resumed_optimizer_continues_bit_for_bit(tmp_path: Path) -> None:
    net, optimizer = trained_net()
    read = read_checkpoint(write_checkpoint(tmp_path, 3, content_of(net, optimizer)))
    other_net, other = trained_net(num_steps=0)
    other_net.load_state_dict(read.model_state)
    other.load_state_dict(read.optimizer_state["policy"])
    assert other.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]
    for module, its_optimizer in ((net, optimizer), (other_net, other)):
        generator = torch.Generator().manual_seed(5)
        for _ in range(3):
            update(module, its_optimizer, generator)
    assert_equal(net.state_dict(), other_net.state_dict())


def test_full_weights_load_strictly_with_plain_torch(tmp_path: Path) -> None:
    net, optimizer = trained_net()
    folder = write_checkpoint(tmp_path, 1, content_of(net, optimizer))
    weights = torch.load(folder / "actor/model_state_dict/full_weights.pt", weights_only=True)
    trained_net(num_steps=0)[0].load_state_dict(weights, strict=True)
    assert_equal(weights, net.state_dict())


def test_without_export(tmp_path: Path) -> None:
    content = CheckpointContent({"w": torch.ones(2)}, frozenset(), {}, {}, {}, None)
    read = read_checkpoint(write_checkpoint(tmp_path, 0, content))
    assert read.export is None
    assert read.optimizer_state == {}
    assert read.tensors == {}


def test_views_and_tied_weights_cost_no_extra_bytes(tmp_path: Path) -> None:
    flat = torch.arange(1_000_000, dtype=torch.float32)
    tied = torch.ones(1000)
    state = {"view": flat[10:20], "a": tied, "b": tied}
    folder = write_checkpoint(tmp_path, 1, CheckpointContent(state, frozenset(), {}, {"view": flat[:3]}, {}, None))
    read = read_checkpoint(folder)
    assert_equal(read.model_state, state)
    assert read.model_state["a"].data_ptr() == read.model_state["b"].data_ptr()
    assert (folder / "actor/model_state_dict/full_weights.pt").stat().st_size < 10_000


def test_hard_links_share_frozen_weights(tmp_path: Path) -> None:
    net, optimizer = trained_net()
    first = write_checkpoint(tmp_path, 1, content_of(net, optimizer))
    update(net, optimizer, torch.Generator().manual_seed(1))
    second = write_checkpoint(tmp_path, 2, content_of(net, optimizer))
    shared = {
        file.name
        for file in (second / "model").iterdir()
        if file.stat().st_ino == (first / "model" / file.name).stat().st_ino
    }
    assert shared == {"config.json", "model-00001-of-00002.safetensors", "model.safetensors.index.json"}
    assert verify(first) == verify(second) == []
    assert_equal(load_safetensors(second / "model"), net.state_dict())


def test_decayed_file_is_not_linked(tmp_path: Path) -> None:
    net, optimizer = trained_net()
    first = write_checkpoint(tmp_path, 1, content_of(net, optimizer))
    shard = first / "model" / "model-00001-of-00002.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    second = write_checkpoint(tmp_path, 2, content_of(net, optimizer))
    assert verify(first)
    assert verify(second) == []


def test_no_hard_links_on_this_filesystem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError("no links here")

    net, optimizer = trained_net()
    first = write_checkpoint(tmp_path, 1, content_of(net, optimizer))
    monkeypatch.setattr("os.link", refuse)
    second = write_checkpoint(tmp_path, 2, content_of(net, optimizer))
    assert (second / "model/config.json").stat().st_ino != (first / "model/config.json").stat().st_ino
    assert verify(second) == []


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (
            lambda: {"optimizer_state": {"policy": {"state": {0: object()}}}},
            r"optimizer_state\['policy'\]\['state'\]\[0\]",
        ),
        (lambda: {"optimizer_state": {(1, 2): 3}}, "neither a string nor an integer"),
        (lambda: {"model_state": {"w": torch.ones(2, device="meta")}}, r"model_state\['w'\]"),
        (lambda: {"model_state": {"w": torch.eye(2).to_sparse()}}, r"model_state\['w'\]"),
        (lambda: {"state": {"seeds": {1: 2}}}, r"state\['seeds'\] has the key 1"),
        (lambda: {"state": {"shape": (1, 2)}}, r"state\['shape'\] is a tuple"),
    ],
)
def test_what_would_not_load_is_refused_at_once(tmp_path: Path, change: Callable[[], dict], where: str) -> None:
    fields = {"model_state": {}, "frozen_names": frozenset(), "optimizer_state": {}, "tensors": {}, "state": {}}
    with pytest.raises(TypeError, match=where):
        write_checkpoint(tmp_path, 1, CheckpointContent(**{**fields, "export": None, **change()}))
    assert list(tmp_path.iterdir()) == []


def test_wrong_arguments(tmp_path: Path) -> None:
    content = CheckpointContent({"w": torch.ones(2)}, frozenset({"v"}), {}, {}, {}, None)
    with pytest.raises(ValueError, match="v"):
        write_checkpoint(tmp_path, 1, content)
    with pytest.raises(ValueError, match="negative"):
        write_checkpoint(tmp_path, -1, content)


def test_full_weights_overlay(tmp_path: Path) -> None:
    net, optimizer = trained_net()
    folder = write_checkpoint(tmp_path / "ours", 1, content_of(net, optimizer))
    file = folder / "actor/model_state_dict/full_weights.pt"
    for path in (folder, folder / "actor", file.parent, file):
        assert_equal(load_full_weights(path), net.state_dict())

    foreign = tmp_path / "theirs/global_step_9/actor/model_state_dict/full_weights.pt"
    foreign.parent.mkdir(parents=True)
    torch.save(net.state_dict(), foreign)
    assert_equal(load_full_weights(tmp_path / "theirs/global_step_9"), net.state_dict())


def test_full_weights_overlay_errors(tmp_path: Path) -> None:
    net, optimizer = trained_net()
    folder = write_checkpoint(tmp_path, 1, content_of(net, optimizer))
    file = folder / "actor/model_state_dict/full_weights.pt"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    for path in (folder, file):
        with pytest.raises(UserError, match="SHA-256"):
            load_full_weights(path)
    with pytest.raises(UserError, match=r"No full_weights\.pt"):
        load_full_weights(tmp_path)
    stray = tmp_path / "stray.pt"
    stray.write_bytes(b"not weights")
    with pytest.raises(UserError, match="cannot be read"):
        load_full_weights(stray)
    torch.save({"model": {"w": torch.ones(1)}}, stray)
    with pytest.raises(UserError, match="dict of tensors"):
        load_full_weights(stray)
    torch.save(Path("x"), stray)  # needs code to load, so it must not load
    with pytest.raises(UserError, match="cannot be read"):
        load_full_weights(stray)


def test_state_json_is_readable(tmp_path: Path) -> None:
    net, optimizer = trained_net()
    folder = write_checkpoint(tmp_path, 3, content_of(net, optimizer))
    document = json.loads((folder / "trainer/state.json").read_text())
    assert document["step"] == 3
    assert document["state"]["counters"] == {"update": 3}
