"""Stored experience: decisions of many updates, each linked to the one that followed it."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from tensordict import TensorDict
from torch import Tensor

from regrasp.algorithms.advantages import RewardType, chunk_rewards
from regrasp.device import send
from regrasp.errors import UserError

if TYPE_CHECKING:
    from regrasp.rollout.decisions import Decisions

_NONE = -1
_WIDE = 3
"""Dimensions from which on a stored feature is one of many tokens."""
_COLUMNS = ("rewards", "discounts", "returns", "decision", "next", "is_over", "is_final", "succeeded", "written")


@dataclass(frozen=True)
class Sample:
    """Decisions drawn from a replay, and what followed them."""

    rows: Tensor
    """(B,) int64."""
    following: Tensor
    """(B,) int64, the row whose value goes on with the return."""
    rewards: Tensor
    """(B,), discounted sum of what was earned until then."""
    discounts: Tensor
    """(B,), of that value; 0 where the episode ended before."""


@dataclass(frozen=True)
class Room:
    """How much memory a replay may take, and where its files are."""

    num_bytes: int
    folder: str | None
    """None: the system's folder for temporary files."""

    def mapped(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of zeros in a file that nothing is left of when the process ends, however it ends.

        Raises:
            UserError: The file cannot be made.
        """
        count = math.prod(shape)
        try:
            with tempfile.NamedTemporaryFile(dir=self.folder, prefix="regrasp-replay-") as file:
                os.posix_fallocate(file.fileno(), 0, max(count * dtype.itemsize, 1))
                return torch.from_file(file.name, shared=True, size=count, dtype=dtype).view(shape)
        except OSError as error:
            size = count * dtype.itemsize / 1e9
            raise UserError(
                f"A file of {size:.2f} GB for stored experience cannot be made: {error.strerror}",
                key="algorithm.replay_buffer.storage_path",
                value=self.folder,
                expected="a folder that can be written, on a disk with room",
                fix="name another one, or lower algorithm.replay_buffer.capacity",
            ) from error


class Replay:
    """The newest decisions, in rows that are overwritten in their order.

    A row is of a decision, or of the observation that the step limit cut an episode on: that one has no successor, and
    says with what value the return of the decision before it goes on. Rows are stored on the device that their features
    come from. Features of many tokens, (B, S, D), are stored in 16 bits.

    Args:
        capacity: Rows.
        num_envs: Environments of the run: that of a decision is its column modulo this.
        gamma: See `chunk_rewards`.
        reward_type: See `chunk_rewards`.
        room: Bounds the memory of features and traces; None: there is no bound.
    """

    def __init__(
        self, capacity: int, num_envs: int, *, gamma: float, reward_type: RewardType, room: Room | None = None
    ) -> None:
        self._room = room
        self._place: torch.device | None = None
        self._capacity = capacity
        self.num_envs = num_envs
        self._gamma = gamma
        self._reward_type: RewardType = reward_type
        self._inputs: dict[str, Tensor] = {}
        self._traces: dict[str, Tensor] = {}
        self._mapped = set[tuple[str, str]]()
        """Groups and names of the tables that are files."""
        flags = {name: torch.zeros(capacity, dtype=torch.bool) for name in ("is_over", "is_final", "succeeded")}
        numbers = {name: torch.zeros(capacity, dtype=torch.float32) for name in ("rewards", "discounts", "returns")}
        counts = {name: torch.full((capacity,), _NONE) for name in ("decision", "next", "written")}
        self._columns: dict[str, Tensor] = {**flags, **numbers, **counts}
        self._episodes: list[list[tuple[int, int]]] = [[] for _ in range(num_envs)]
        """Of every environment the rows of the episode under way, each with the number under which it was written."""
        self._num_written = 0
        self._index()

    def __len__(self) -> int:
        """Decisions that can be drawn."""
        return len(self._ready)

    @property
    def num_successful(self) -> int:
        """Of those, decisions of episodes that succeeded."""
        return len(self._successful)

    def add(self, decisions: Decisions) -> None:
        """Store decisions, those of each environment in the order of time.

        Raises:
            UserError: They are more than the replay has rows.
        """
        count = len(decisions)
        if count > self._capacity:
            raise UserError(
                "The replay is smaller than one update's experience",
                key="algorithm.replay_buffer.capacity",
                value=self._capacity,
                expected=f"at least {count}",
                fix="raise it, or lower env.train.total_num_envs",
            )
        written = torch.arange(self._num_written, self._num_written + count)
        rows = written % self._capacity
        self._num_written += count
        rewards, discounts = chunk_rewards(
            decisions["rewards"], decisions["num_executed"], reward_type=self._reward_type, gamma=self._gamma
        )
        key = decisions["column"] * (int(decisions["time"].max()) + 1) + decisions["time"]
        is_final = decisions["is_final"]
        goes_on = torch.isin(key, key[is_final])  # the step limit ended it, and that is not the end of its return
        own = {
            "rewards": rewards.float(),
            "discounts": discounts.float(),
            "returns": torch.zeros(count, dtype=torch.float32),
            "decision": decisions["decision"],
            "next": torch.full((count,), _NONE),
            "is_over": decisions["ends"] & ~goes_on,
            "is_final": is_final,
            "succeeded": torch.zeros(count, dtype=torch.bool),
            "written": written,
        }
        for name, values in own.items():
            self._columns[name][rows] = values
        self._store(decisions, rows)
        envs = (decisions["column"] % self.num_envs).tolist()
        facts = zip(rows.tolist(), written.tolist(), envs, decisions["decision"].tolist(), strict=True)
        closes = (decisions["ends"] & ~goes_on | is_final).tolist()
        success = decisions["success"].tolist()
        for (row, number, env, decision), closing, succeeds in zip(facts, closes, success, strict=True):
            episode = self._episodes[env]
            if decision == 0:
                episode.clear()  # one that was broken off is never seen to its end
            elif episode:
                self._columns["next"][episode[-1][0]] = row
            episode.append((row, number))
            if succeeds:
                self._columns["succeeded"][row] = True
            if closing:
                self._close(episode)
        self._index()

    def _store(self, decisions: Decisions, rows: Tensor) -> None:
        inputs = decisions.inputs
        table = inputs if isinstance(inputs, TensorDict) else inputs.to(torch.device("cpu"))
        device = next(table[name].device for name in map(str, table.keys()))
        self._make({"inputs": table, "trace": decisions.trace}, device)
        for store, values in ((self._inputs, table), (self._traces, decisions.trace)):
            for name, kept in store.items():
                kept[rows.to(kept.device)] = values[name].to(kept)

    def _make(self, groups: Mapping[str, TensorDict], device: torch.device) -> None:
        """Make the tables that there are not yet, as rows of theirs are; restored ones go to where rows come from."""
        if self._inputs:
            self._move(device)
            return
        self._place = device
        wanted = {}
        for group, values in groups.items():
            for name in map(str, values.keys()):
                value = values[name]
                halves = value.dim() >= _WIDE and value.dtype == torch.float32 and group == "inputs"
                dtype = torch.float16 if halves else value.dtype
                wanted[group, name] = ((self._capacity, *value.shape[1:]), dtype)
        self._allocate(wanted, device)

    def _allocate(
        self, wanted: Mapping[tuple[str, str], tuple[tuple[int, ...], torch.dtype]], device: torch.device
    ) -> None:
        """Tables of zeros: the largest are files, as long as the others are more than there is room for."""
        sizes = {key: math.prod(shape) * dtype.itemsize for key, (shape, dtype) in wanted.items()}
        mapped = self._mapped = set[tuple[str, str]]()
        if self._room is not None:
            for key in sorted(sizes, key=lambda key: sizes[key], reverse=True):
                if sum(sizes.values()) - sum(sizes[other] for other in mapped) <= self._room.num_bytes:
                    break
                mapped.add(key)
        for (group, name), (shape, dtype) in wanted.items():
            store = self._inputs if group == "inputs" else self._traces
            if (group, name) in mapped:
                assert self._room is not None
                store[name] = self._room.mapped(shape, dtype)
            else:
                store[name] = torch.zeros(shape, dtype=dtype, device=device)

    def _move(self, device: torch.device) -> None:
        """Have what is in memory on `device`."""
        if device == self._place:
            return
        for group, store in (("inputs", self._inputs), ("trace", self._traces)):
            for name in store.keys() - {name for own, name in self._mapped if own == group}:
                store[name] = store[name].to(device)
        self._place = device

    def _close(self, episode: list[tuple[int, int]]) -> None:
        """An episode has ended: give its decisions their returns, and its outcome."""
        columns = self._columns
        rows = [row for row, number in episode if columns["written"][row] == number]
        episode.clear()
        value, succeeded = 0.0, bool(columns["succeeded"][rows].any())
        for row in reversed(rows):
            value = float(columns["rewards"][row]) + float(columns["discounts"][row]) * value
            columns["returns"][row] = value
        columns["succeeded"][rows] = succeeded

    def _index(self) -> None:
        columns = self._columns
        is_known = columns["is_over"] | (columns["next"] != _NONE)
        self._is_ready = (columns["written"] != _NONE) & ~columns["is_final"] & is_known
        self._ready = torch.nonzero(self._is_ready).flatten()
        self._successful = torch.nonzero(self._is_ready & columns["succeeded"]).flatten()

    def draw(self, size: int, generator: torch.Generator, *, steps: int = 1, successful: float = 0.0) -> Sample:
        """Draw decisions uniformly, with replacement.

        Args:
            size: Decisions.
            generator: Draws them.
            steps: Decisions whose rewards are counted, until the episode's end at most.
            successful: Share of them drawn from episodes that succeeded, once there are any.
        """
        num_successful = round(size * successful) if len(self._successful) else 0
        pools = ((self._ready, size - num_successful), (self._successful, num_successful))
        rows = torch.cat(
            [pool[torch.randint(len(pool), (count,), generator=generator)] for pool, count in pools if count]
        )
        columns, place = self._columns, rows
        rewards, discounts = torch.zeros(size, dtype=torch.float32), torch.ones(size, dtype=torch.float32)
        is_open = torch.ones(size, dtype=torch.bool)
        for _ in range(steps):
            rewards += torch.where(is_open, discounts * columns["rewards"][place], 0.0)
            discounts = torch.where(is_open, discounts * columns["discounts"][place], discounts)
            ended = is_open & columns["is_over"][place]
            discounts = torch.where(ended, 0.0, discounts)
            place = torch.where(is_open & ~ended, columns["next"][place], place)
            is_open = is_open & ~ended
            is_open &= self._is_ready[place]  # where what follows is not known yet, its value goes on
        return Sample(rows, place, rewards, discounts)

    def sampled(
        self, size: int, generator: torch.Generator, *, steps: int = 1, successful: float = 0.0
    ) -> tuple[TensorDict, TensorDict]:
        """Features of drawn decisions, and a record of them and of what followed; see `draw`."""
        drawn = self.draw(size, generator, steps=steps, successful=successful)
        following = {
            "inputs": self.inputs(drawn.following),
            "trace": self.traces(drawn.following),
            "decision": self.column("decision", drawn.following),
        }
        record = {
            "trace": self.traces(drawn.rows),
            "following": TensorDict(following, batch_size=[size]),
            "rewards": drawn.rewards,
            "discounts": drawn.discounts,
            "returns": self.column("returns", drawn.rows),
            "decision": self.column("decision", drawn.rows),
        }
        return self.inputs(drawn.rows), TensorDict(record, batch_size=[size])

    def inputs(self, rows: Tensor) -> TensorDict:
        """Features of rows, in the number format that they came in but for wide ones, which are float32."""
        values = self._taken(self._inputs, rows)
        widened = {name: value.float() if value.dtype == torch.float16 else value for name, value in values.items()}
        return TensorDict(widened, batch_size=[len(rows)])

    def traces(self, rows: Tensor) -> TensorDict:
        """Traces of rows."""
        return TensorDict(self._taken(self._traces, rows), batch_size=[len(rows)])

    def _taken(self, tables: Mapping[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
        """Copies of rows of each table, where decisions come from."""
        index = {device: send(rows, device) for device in {table.device for table in tables.values()}}
        taken = {name: table[index[table.device]] for name, table in tables.items()}
        return {name: send(values, self._place or values.device) for name, values in taken.items()}

    def column(self, name: str, rows: Tensor) -> Tensor:
        """`decision`, `returns` or another number of each row."""
        return self._columns[name][rows]

    def state_dict(self) -> dict[str, Tensor]:
        """Everything stored, as far as it was ever written."""
        filled = min(self._num_written, self._capacity)
        episodes = [(env, *pair) for env, episode in enumerate(self._episodes) for pair in episode]
        groups = {"column": self._columns, "inputs": self._inputs, "trace": self._traces}
        tables = {f"{group}.{name}": table[:filled] for group, own in groups.items() for name, table in own.items()}
        return {
            **tables,
            "num_written": torch.tensor([self._num_written]),
            "episodes": torch.tensor(episodes, dtype=torch.long).reshape(-1, 3),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` returned, in host memory.

        Args:
            state: Of a replay of the same capacity.

        Raises:
            UserError: It was written with another capacity or number of environments.
        """
        self._num_written = int(state["num_written"])
        filled = min(self._num_written, self._capacity)
        envs = state["episodes"][:, 0]
        if len(state["column.next"]) != filled or bool((envs >= self.num_envs).any()):
            raise UserError(
                "The checkpoint's replay is of another size",
                key="algorithm.replay_buffer.capacity",
                value=self._capacity,
                expected=f"the size that the run was begun with ({len(state['column.next'])} rows are stored)",
                fix="resume with the settings of algorithm and env.train that the run was begun with",
            )
        for name in _COLUMNS:
            self._columns[name][:filled] = state[f"column.{name}"]
        self._inputs, self._traces, self._place = {}, {}, torch.device("cpu")
        kept = {
            (group, name.removeprefix(f"{group}.")): value
            for group in ("inputs", "trace")
            for name, value in state.items()
            if name.startswith(f"{group}.")
        }
        wanted = {key: ((self._capacity, *value.shape[1:]), value.dtype) for key, value in kept.items()}
        self._allocate(wanted, self._place)
        for (group, name), value in kept.items():
            (self._inputs if group == "inputs" else self._traces)[name][:filled] = value
        self._episodes = [[] for _ in range(self.num_envs)]
        for env, row, number in state["episodes"].tolist():
            self._episodes[env].append((row, number))
        self._index()
