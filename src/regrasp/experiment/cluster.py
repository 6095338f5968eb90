"""Blocks `cluster` and `rollout`: which processes of which machines play which roles of a run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import Field
from pydantic.dataclasses import dataclass

from regrasp.config.types import BLOCK, Expect, Name, Names, PositiveInt
from regrasp.errors import UserError

Role = Literal["actor", "env", "rollout"]
ROLES: tuple[Role, ...] = get_args(Role)
_KEY = "cluster.component_placement"
_WHOLE_CLUSTER = "cluster"
_MACHINES = "node"
"""RLinf's group in which numbers are those of machines."""
_MOST = 2**12
"""No number of a placement is larger, so that a slip of the pen is no list of a billion."""
_PART = re.compile(r"(\d+)(?:-(\d+))?(?::(\d+)(?:-(\d+))?)?")
_FORMS = "'all', one number, or numbers and ranges such as '0-3' or '0,2', each number once"
_ADDRESS = re.compile(r"auto|[^\s:/]+:\d{1,5}")


@dataclass(frozen=True, config=BLOCK)
class Placement:
    """Numbers of a role in a group of machines."""

    placement: int | str
    """Numbers, as without a group."""
    node_group: str | Names = _WHOLE_CLUSTER
    """RLinf's name of the group; a run on one machine needs none."""


@dataclass(frozen=True, config=BLOCK)
class ClusterConfig:
    """Machines, and the accelerators or processes of each role."""

    num_nodes: PositiveInt = 1
    """Machines of the run; more than one need `cluster.address`."""
    component_placement: Annotated[
        dict[str, int | str | Placement],
        Expect("a block of roles (actor, env, rollout) and numbers: 'all', 0, '0-3', '0,2', or {placement: '0-3'}"),
    ] = Field(default_factory=lambda: {"actor,env,rollout": "all"})
    """Accelerators by role, counted over all machines; processes where there are none. Roles that share a placement are
    joined by a comma, and share their processes; see docs/scaling.md."""
    address: Annotated[Name | None, Expect("'auto', host:port, or null")] = None
    """Ray cluster that the run joins; `auto`: the one that runs on this machine; null: one of its own."""

    def numbers(self) -> dict[Role, tuple[int, ...] | None]:
        """The number of each rank of each role; None: one rank for every number that there is.

        Raises:
            UserError: A placement is not one.
        """
        found: dict[Role, tuple[int, ...] | None] = {}
        for roles, value in self.component_placement.items():
            ranks = _numbers(roles, value.placement if isinstance(value, Placement) else value)
            for role in (role.strip() for role in roles.split(",")):
                if role not in ROLES:
                    raise _problem("Unknown role", {roles: value}, f"roles among {', '.join(ROLES)}")
                if role in found:
                    raise _problem(f"The role {role} is placed twice", self.component_placement)
                found[role] = ranks
        if missing := [role for role in ROLES if role not in found]:
            raise _problem(f"Nothing is said of {' and '.join(missing)}", self.component_placement)
        return found

    def problems(self) -> Iterator[UserError]:
        """What cannot work on any machines."""
        try:
            self.numbers()
        except UserError as error:
            yield error
        if self.address is not None and not _ADDRESS.fullmatch(self.address):
            yield UserError(
                "Not the address of a Ray cluster",
                key="cluster.address",
                value=self.address,
                expected="'auto', host:port as `ray start` prints it, or null",
                fix="set cluster.address=auto to join the cluster of this machine",
            )
        if self.num_nodes > 1 and self.address is None:
            yield UserError(
                "Several machines are joined by a Ray cluster that is there before the run",
                key="cluster.num_nodes",
                value=self.num_nodes,
                expected="1, or cluster.address",
                fix="start the cluster with `ray start` on every machine (docs/scaling.md), and set"
                " cluster.address=auto; or set cluster.num_nodes=1",
            )
        groups = {getattr(value, "node_group", _WHOLE_CLUSTER) for value in self.component_placement.values()}
        if _MACHINES in groups or (self.num_nodes > 1 and groups != {_WHOLE_CLUSTER}):
            what = "placement on machines instead of accelerators" if _MACHINES in groups else "groups of machines"
            yield UserError(
                f"Not in this release: {what}",
                key=_KEY,
                value=dict(self.component_placement),
                expected="numbers without node_group, which count over all machines in order",
                fix="write the numbers alone, such as env: 0-3",
            )


@dataclass(frozen=True, config=BLOCK)
class RolloutConfig:
    """The worker that runs the policy."""

    pipeline_stage_num: PositiveInt = 1
    """Groups of environments that take turns: one simulates while the policy acts in another."""
    recompute_logprobs: bool = False
    """Compute the log-probabilities of all decisions again before an update's first step, as its losses do, and take
    ratios against those. The first ratio is then exactly 1, also where acting rounds otherwise (token by token in
    bfloat16, compiled), for a forward pass more in every update."""


def _numbers(roles: str, value: int | str) -> tuple[int, ...] | None:
    """The number of each rank; None for all that there are."""
    text = str(value).replace(" ", "")
    if text == "all":
        return None
    ranks: list[int] = []
    for part in text.split(","):
        match = _PART.fullmatch(part)
        if match is None:
            raise _problem("Not a placement", {roles: value})
        first, last, first_rank, last_rank = (None if bound is None else int(bound) for bound in match.groups())
        places = _range({roles: value}, first, last)
        own = places if first_rank is None else _range({roles: value}, first_rank, last_rank)
        if first_rank not in (None, len(ranks)):
            raise _problem(f"Process numbers do not go on from {len(ranks)}", {roles: value})
        if len(own) % len(places):
            raise _problem(
                "Processes do not divide over the numbers", {roles: value}, "each number with as many processes"
            )
        if ranks and min(places) <= max(ranks):
            raise _problem("Numbers that do not rise", {roles: value})
        ranks += [number for number in places for _ in range(len(own) // len(places))]
    return tuple(ranks)


def _range(entry: Mapping[str, Any], first: int | None, last: int | None) -> range:
    """Both ends included."""
    assert first is not None
    last = first if last is None else last
    if not first <= last < _MOST:
        raise _problem("Not a range", entry, f"a range from a lower to a higher number, below {_MOST}")
    return range(first, last + 1)


def _problem(text: str, entry: Mapping[str, Any], expected: str | None = None) -> UserError:
    return UserError(
        text,
        key=_KEY,
        value=dict(entry),
        expected=expected or f"each of {', '.join(ROLES)} once, on {_FORMS}",
        fix=f"write {_KEY}: {{'actor,env,rollout': all}}, or see docs/scaling.md",
    )
