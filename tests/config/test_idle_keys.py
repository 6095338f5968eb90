"""Keys of the command line that other keys leave without effect are told, and those that have one are not."""

from __future__ import annotations

import pytest

from regrasp.config.search import SHIPPED
from regrasp.experiment.load import load_config

RESIDUAL, DSRL = "pick_cube_sac_groot", "pick_cube_dsrl_groot"
FLOW, SELECTION = "pick_cube_sac_flow_groot", "pick_cube_selection_groot"
PPO, OPENVLA = "pick_cube_ppo_groot", "pick_cube_ppo_openvla"
HEAD = "actor.model.rl_head_config"
TOKENS = ("actor.model.model_type=openvla_oft", "actor.model.action_head=tokens")
MEMORY = "algorithm.replay_buffer.max_memory_gb=1"


def idle(name: str, *overrides: str, trains: bool = True) -> list[str]:
    """The keys that are told."""
    warnings = load_config(name, overrides, trains=trains).warnings
    return [text.partition(" has no effect: ")[0] for text in warnings if " has no effect: " in text]


@pytest.mark.parametrize(
    ("name", "given", "override"),
    [
        (RESIDUAL, (), "actor.model.dsrl.bound=2.0"),
        (RESIDUAL, (), "actor.model.selection={candidates: 4}"),
        (RESIDUAL, (), f"{HEAD}.noise_level=0.4"),
        (RESIDUAL, (), "algorithm.selection_margin=0.3"),
        (RESIDUAL, (), "algorithm.entropy_tuning.target_entropy=-1"),
        (RESIDUAL, (), "algorithm.entropy_tuning.optim.lr=1e-3"),
        (RESIDUAL, (), "algorithm.replay_buffer.storage_path=files"),
        (RESIDUAL, ("algorithm.proximity=[0,0,0]",), "algorithm.proximity_to=start"),
        (DSRL, (), "actor.model.residual.std=0.2"),
        (DSRL, ("actor.model.dsrl.noise_aliasing=false", "algorithm.latent_targets=false"), "actor.model.dsrl.pairs=2"),
        (FLOW, (), f"{HEAD}.joint_logprob=true"),
        (FLOW, (), f"{HEAD}.noise_params=[0.4,0.2,3]"),
        (FLOW, (f"{HEAD}.noise_anneal=true",), f"{HEAD}.noise_level=0.4"),
        (FLOW, (), "algorithm.proximity_to=proposal"),
        ("gymnasium_pendulum_sac_mlp", (), "algorithm.proximity=[1,1,0]"),
        (SELECTION, (), "algorithm.proximity=[1,1,0]"),
        (SELECTION, (), "algorithm.normalize_q=false"),
        (PPO, (), "actor.model.proposal=dsrl"),
        (PPO, (), "actor.model.q_head.num_q_heads=3"),
        (PPO, (), "actor.model.lora.rank=4"),
        (PPO, (), "algorithm.kl_penalty=mse"),
        ("pick_cube_grpo_groot", (), "actor.model.value_head_hidden=[3]"),
        ("pick_cube_grpo_openvla", (), "actor.model.detach_critic_input=true"),
        (OPENVLA, (), "actor.model.lora.rank=4"),
        (OPENVLA, (), "sft.noise_repeats=4"),
        (
            OPENVLA,
            ("algorithm.adv_type=self_imitation", "algorithm.loss_type=imitation"),
            "algorithm.noise_repeats=2",
        ),
        (
            OPENVLA,
            ("actor.model.model_type=openvla_oft", "actor.model.action_head=gaussian"),
            "actor.model.sampling.top_k=5",
        ),
        (
            OPENVLA,
            ("actor.model.model_type=openvla_oft", "actor.model.action_head=tokens"),
            "actor.model.initial_std=1",
        ),
    ],
)
def test_a_key_without_effect_is_told(name: str, given: tuple[str, ...], override: str) -> None:
    assert idle(name, *given, override) == [override.partition("=")[0]]


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        (RESIDUAL, ("actor.model.residual.std=0.2", "algorithm.proximity_to=start", "algorithm.normalize_q=false")),
        (RESIDUAL, (MEMORY, "algorithm.replay_buffer.storage_path=files", "sft.noise_repeats=2")),
        (
            DSRL,
            ("actor.model.dsrl.pairs=2", "algorithm.entropy_tuning.target_entropy=-1", "algorithm.latent_targets=true"),
        ),
        (FLOW, (f"{HEAD}.noise_level=0.4", f"{HEAD}.noise_color=1.0", "algorithm.proximity_to=start")),
        (SELECTION, ("algorithm.selection_margin=0.1", "actor.model.selection.candidates=4")),
        (
            PPO,
            (
                f"{HEAD}.noise_params=[0.4,0.2,3]",
                f"{HEAD}.value_vlm_mode=attention",
                "actor.model.value_head_hidden=[3]",
            ),
        ),
        (
            PPO,
            (
                "actor.model.is_lora=true",
                "actor.model.lora.rank=4",
                "algorithm.kl_beta=0.1",
                "algorithm.kl_penalty=mse",
            ),
        ),
    ],
)
def test_a_key_with_an_effect_is_not(name: str, overrides: tuple[str, ...]) -> None:
    assert idle(name, *overrides) == []


def test_what_a_file_says_and_an_evaluation_does_not_look_at_is_not_told() -> None:
    """Variants inherit keys that they have no use for."""
    for file in SHIPPED.glob("*.yaml"):
        assert idle(file.stem) == []
    assert idle(RESIDUAL, "actor.model.dsrl.bound=2.0", trains=False) == []


def test_other_arguments_of_the_same_task_in_evaluation_are_told() -> None:
    given = "env.train.init_params.kwargs={g: 5.0}"
    warnings = load_config("gymnasium_pendulum_ppo_mlp", [given], trains=True).warnings
    assert any("env.eval.init_params.kwargs {}" in text and "'g': 5.0" in text for text in warnings)
    both = [given, "env.eval.init_params.kwargs={g: 5.0}"]
    assert not load_config("gymnasium_pendulum_ppo_mlp", both, trains=True).warnings
