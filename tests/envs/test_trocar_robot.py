"""The trocar task's robot: joint orders against the reference's indices, kinematics against a second computation."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import mujoco
import numpy as np
import pytest

from regrasp.envs.mujoco.tasks.trocar import robot
from regrasp.envs.mujoco.tasks.trocar.options import TrocarOptions
from regrasp.envs.mujoco.tasks.trocar.robot import (
    ACTION_JOINTS,
    ARM_JOINTS,
    BODY_JOINTS,
    HAND_JOINTS,
    START,
)
from regrasp.envs.mujoco.tasks.trocar.scene import BORE, GRIPS, OBJECTS, TABLE_HEIGHT, TIPS
from regrasp.envs.mujoco.tasks.trocar.task import AssembleTrocar

# Positions of the reference's observations in its simulator's breadth-first order of joints.
LEG_AND_WAIST_INDICES = [0, 3, 6, 9, 13, 17, 1, 4, 7, 10, 14, 18, 2, 5, 8]
ARM_INDICES = [11, 15, 19, 21, 23, 25, 27, 12, 16, 20, 22, 24, 26, 28]
HAND_INDICES = [31, 37, 41, 30, 36, 29, 35, 34, 40, 42, 33, 39, 32, 38]


@dataclass(frozen=True)
class Link:
    """A body of the robot's file and its joint."""

    name: str
    parent: str
    joint: str
    position: list[float]
    quaternion: list[float]
    axis: list[float]
    limits: list[float]


def links() -> list[Link]:
    """The robot's file, parents first."""
    tree = ElementTree.parse(Path(robot.__file__).with_name("robot.xml"))
    found, queue = [], deque([(body, "") for body in tree.findall("worldbody/body")])
    while queue:
        body, parent = queue.popleft()
        queue.extend((child, body.attrib["name"]) for child in body.findall("body"))
        joint = body.find("joint")
        if joint is None:
            continue
        placed = [numbers(body.get("pos", "0 0 0")), numbers(body.get("quat", "1 0 0 0"))]
        turned = [numbers(joint.attrib["axis"]), numbers(joint.attrib["range"])]
        found.append(Link(body.attrib["name"], parent, joint.attrib["name"], *placed, *turned))
    return found


def numbers(text: str) -> list[float]:
    return [float(word) for word in text.split()]


@pytest.fixture(scope="module")
def task() -> AssembleTrocar:
    return AssembleTrocar(TrocarOptions())


def breadth_first() -> list[str]:
    """All joints, level by level, siblings by name."""
    found, queue = [], deque(["pelvis"])
    while queue:
        parent = queue.popleft()
        for link in sorted((link for link in links() if link.parent == parent), key=lambda link: link.name):
            found.append(link.joint)
            queue.append(link.name)
    return found


def test_observations_have_the_order_of_the_reference():
    joints = breadth_first()
    assert len(joints) == len(set(joints)) == 43
    assert [joints[i] for i in LEG_AND_WAIST_INDICES + ARM_INDICES] == list(BODY_JOINTS)
    assert [joints[i] for i in HAND_INDICES] == list(HAND_JOINTS)


def test_actions_have_the_order_of_the_reference():
    assert sorted(ACTION_JOINTS) == sorted(BODY_JOINTS + HAND_JOINTS)
    assert ACTION_JOINTS[:3] == ("left_hip_pitch_joint", "right_hip_pitch_joint", "left_hip_roll_joint")
    assert ACTION_JOINTS[12:15] == ("waist_yaw_joint", "waist_roll_joint", "waist_pitch_joint")
    assert ACTION_JOINTS[15:] == ARM_JOINTS + HAND_JOINTS
    assert BODY_JOINTS[15:29] == ARM_JOINTS, "the slice that the reference's mapping takes"


def rotation(quaternion: list[float]) -> np.ndarray:
    w, *xyz = np.asarray(quaternion) / np.linalg.norm(quaternion)
    x, y, z = xyz
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + 2 * w * cross + 2 * cross @ cross


def test_kinematics_agree_with_products_of_transforms(task: AssembleTrocar):
    rng = np.random.default_rng(0)
    table: dict[str, Link] = {link.name: link for link in links()}
    data = mujoco.MjData(task.model)
    angles = {link.joint: rng.uniform(link.limits[0], link.limits[1]) for link in links()}
    for joint, angle in angles.items():
        data.qpos[task.model.joint(joint).qposadr[0]] = angle
    mujoco.mj_kinematics(task.model, data)

    def frame(name: str) -> tuple[np.ndarray, np.ndarray]:
        if name == "pelvis":
            return np.array([-1.84919, 1.94, 0.81168]), np.eye(3)
        link = table[name]
        origin, turn = frame(link.parent)
        half = angles[link.joint] / 2
        own = rotation(link.quaternion) @ rotation([np.cos(half), *(np.sin(half) * np.asarray(link.axis))])
        return origin + turn @ np.asarray(link.position), turn @ own

    for name in ("left_ankle_roll_link", "right_wrist_yaw_link", "left_hand_thumb_2_link", "right_hand_index_1_link"):
        position, turn = frame(name)
        body = data.body(name)
        np.testing.assert_allclose(body.xpos, position, atol=1e-9)
        np.testing.assert_allclose(body.xmat.reshape(3, 3), turn, atol=1e-9)


def test_joints_go_as_far_as_their_limits_and_are_told_no_more(task: AssembleTrocar):
    assert len(links()) == task.model.nu == 43
    for link in links():
        joint, actuator = task.model.joint(link.joint), task.model.actuator(link.joint)
        assert joint.range.tolist() == actuator.ctrlrange.tolist() == link.limits
        assert -actuator.forcerange[0] == actuator.forcerange[1] > 0


def test_start_positions_are_within_limits():
    limits = {link.joint: link.limits for link in links()}
    assert all(limits[joint][0] <= value <= limits[joint][1] for joint, value in START.items())
    assert START["left_hand_middle_0_joint"] == -START["right_hand_middle_0_joint"] == -np.radians(60)


def test_a_joint_goes_where_it_is_told_and_elbows_30_hundredths_lower(task: AssembleTrocar):
    data, episode = mujoco.MjData(task.model), np.zeros(task.episode_size)
    task.reset(data, episode, np.random.default_rng(0))
    wanted = {name: START.get(name, 0.0) for name in ACTION_JOINTS}
    wanted |= {"left_elbow_joint": 0.5, "right_wrist_roll_joint": 0.4, "waist_yaw_joint": 0.1, "left_knee_joint": 0.2}
    action = np.array([wanted[name] for name in ACTION_JOINTS])
    for _ in range(100):
        task.actuate(data, episode, action)
        mujoco.mj_step(task.model, data, task.physics_steps)
    seen = task.observe(data, episode)
    joints = dict(zip(BODY_JOINTS, seen["robot_joint_state"], strict=False))
    for name in BODY_JOINTS:
        expected = wanted[name] - 0.3 * ("elbow" in name)
        assert joints[name] == pytest.approx(expected, abs=0.03), name
    assert np.abs(seen["robot_joint_state"][29:58]).max() < 0.05, "at rest"
    torques = np.array([data.actuator(name).force[0] for name in BODY_JOINTS])
    np.testing.assert_allclose(seen["robot_joint_state"][58:], torques)


def test_the_head_looks_down_as_in_the_reference(task: AssembleTrocar):
    matrix = np.empty(9)
    mujoco.mju_quat2Mat(matrix, task.model.camera("front_camera").quat)
    right, up, back = matrix.reshape(3, 3).T
    np.testing.assert_allclose(-back, [np.cos(0.8308), 0, -np.sin(0.8308)], atol=1e-9)
    assert right[2] == pytest.approx(0)
    assert up[2] > 0


def test_what_is_said_of_the_objects_is_what_the_scene_has(task: AssembleTrocar):
    model = task.model
    table = next(geom for geom in map(model.geom, range(model.ngeom)) if geom.size.tolist() == [0.32, 0.7, 0.02])
    assert table.pos[2] + table.size[2] == pytest.approx(TABLE_HEIGHT)
    for name, grip, tip in zip(OBJECTS, GRIPS, TIPS, strict=True):
        body = model.body(name)
        handle, *others = [model.geom(body.geomadr[0] + i) for i in range(body.geomnum[0])]
        assert handle.pos[2] == grip
        if name == "trocar_1":
            np.testing.assert_allclose([np.hypot(*wall.pos[:2]) - wall.size[0] for wall in others], BORE)
        # A box has its half length last, a capsule its radius first.
        ends = [part.pos[2] + np.sign(tip) * (part.size[2] or part.size[:2].sum()) for part in others]
        np.testing.assert_allclose(ends, tip)
