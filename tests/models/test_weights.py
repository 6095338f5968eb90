"""Weights into modules: strict before anything is read, and with the memory of one copy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from regrasp.checkpoint import hub_folder
from regrasp.checkpoint.hub_folder import list_safetensors
from regrasp.errors import UserError
from regrasp.models import weights
from regrasp.models.weights import DtypeRule, assign_weights


class Net(nn.Module):
    tally: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(3, 2)
        self.extra = nn.Linear(2, 1)
        self.register_buffer("tally", torch.tensor(0))


def on_meta() -> Net:
    with torch.device("meta"):
        return Net()


def saved(folder: Path, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {name: tensor.shape for name, tensor in Net().named_parameters()}
    state = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    save_file({**state, "tally": torch.tensor(7)}, folder / "model.safetensors")
    return state


def by_name(name: str) -> torch.dtype:
    return torch.bfloat16 if name.startswith("body.") else torch.float64


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rule", [None, torch.bfloat16, by_name])
def test_every_tensor_gets_its_dtype(tmp_path: Path, stored: torch.dtype, rule: DtypeRule):
    state = saved(tmp_path, stored)
    net = on_meta()
    assert assign_weights(net, list_safetensors(tmp_path), file=tmp_path, dtype=rule) == set()
    for name, parameter in net.named_parameters():
        expected = stored if rule is None else rule if isinstance(rule, torch.dtype) else rule(name)
        assert parameter.dtype == expected
        assert torch.equal(parameter, state[name].to(expected))
    assert (net.tally.dtype, net.tally.item()) == (torch.int64, 7)


def test_what_is_loaded_can_be_trained_without_touching_the_file(tmp_path: Path):
    saved(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    net = on_meta()
    assign_weights(net, list_safetensors(tmp_path), file=tmp_path)
    with torch.no_grad():
        net.body.weight.fill_(5.0)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_misfits_are_listed_before_any_data_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def no_reading(_: object) -> None:
        raise AssertionError("data was read")

    monkeypatch.setattr(weights, "read_stored", no_reading)
    save_file(
        {"body.weight": torch.zeros(3, 2), "tally": torch.tensor(0), "new": torch.zeros(1)},
        tmp_path / "model.safetensors",
    )
    net = on_meta()
    with pytest.raises(UserError) as error:
        assign_weights(net, list_safetensors(tmp_path), file=tmp_path, optional=("extra",))
    for words in (
        "1 missing: body.bias",
        "1 unexpected: new",
        "1 of another shape: body.weight (3, 2) instead of (2, 3)",
    ):
        assert words in str(error.value)
    assert all(parameter.is_meta for parameter in net.parameters())


def test_an_optional_part_is_absent_as_a_whole(tmp_path: Path):
    state = saved(tmp_path)
    save_file(
        {**{k: v for k, v in state.items() if k.startswith("body.")}, "tally": torch.tensor(0)},
        tmp_path / "model.safetensors",
    )
    net = on_meta()
    assert assign_weights(net, list_safetensors(tmp_path), file=tmp_path, optional=("extra",)) == {"extra"}
    assert net.extra.weight.is_meta
    assert not net.body.weight.is_meta


_CHILD = """
import sys
from pathlib import Path
import torch
from torch import nn
from regrasp.checkpoint import hub_folder
from regrasp.models.weights import assign_weights

hub_folder._MAPPED_BYTES = 16_000_000  # in proportion to this small file

def kilobytes(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key))

with torch.device("meta"):
    net = nn.Sequential(*(nn.Linear(2048, 2048, bias=False) for _ in range(24)))
before = kilobytes("VmRSS")
folder = Path(sys.argv[1])
assign_weights(net, hub_folder.list_safetensors(folder), file=folder, dtype=torch.bfloat16)
print(kilobytes("VmHWM") - before, float(net[23].weight[0, 0]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of a process's memory")
@pytest.mark.parametrize(
    "frozen",
    [
        pytest.param(frozenset(), id="single", marks=pytest.mark.full),
        pytest.param(frozenset(f"{i}.weight" for i in range(12)), id="shards"),
    ],
)
def test_loading_needs_the_memory_of_one_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frozen: frozenset[str]):
    layers = {f"{i}.weight": torch.full((2048, 2048), float(i), dtype=torch.bfloat16) for i in range(24)}
    hub_folder.save_safetensors(layers, tmp_path, frozen)
    size = sum(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    assert size > 200e6
    child = [sys.executable, "-c", _CHILD, str(tmp_path)]
    result = subprocess.run(child, capture_output=True, text=True, check=True)
    kilobytes, last = result.stdout.split()
    assert float(last) == 23
    assert size * 0.95 < int(kilobytes) * 1024 < size * 1.25
