"""An evaluation by itself acts, bit for bit, as the evaluations of the training run that the model comes from."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from run_toys import groot_experiment
from torch import Tensor, nn

from regrasp.engine.acting import policy_to_evaluate
from regrasp.engine.local import LocalEngine
from regrasp.engine.policies import create_policy
from regrasp.envs.registry import create_env
from regrasp.learner.compilation import compile_policy
from regrasp.rollout.inference import Inference
from regrasp.stages.play import PlayOptions, play

CPU = torch.device("cpu")


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """All actions that evaluations choose, as they choose them."""
    actions: list[Tensor] = []
    act = Inference.act_in_blocks

    def noted(*arguments) -> Tensor:
        actions.append(act(*arguments))
        return actions[-1]

    monkeypatch.setattr(Inference, "act_in_blocks", noted)
    return actions


@pytest.mark.parametrize(
    ("precision", "trainable", "compiled"),
    [
        pytest.param("fp32", "head_without_context", False, marks=pytest.mark.full),
        pytest.param("fp32", "head", True, marks=pytest.mark.full),
        ("bf16", "head", False),
        pytest.param("bf16", "head_without_context", True, marks=pytest.mark.full),
        pytest.param("bf16", "all", False, marks=pytest.mark.full),
    ],
)
def test_play_gives_the_numbers_of_trainings_evaluation(
    groot_start: Path,
    chosen: list[Tensor],
    precision: str,
    trainable: str,
    compiled: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("regrasp.engine.compiling.compile_policy", partial(compile_policy, backend="eager"))
    torch._dynamo.reset()
    settings = (
        f"actor.model.precision={precision}",
        f"actor.model.compile={str(compiled).lower()}",
        f"actor.model.trainable={trainable}",
    )
    config = groot_experiment(f"actor.model.model_path={groot_start}", *settings).config
    env = create_env(config.env.train, "train", 4, config.seed)
    eval_env = create_env(config.env.eval, "eval", 4, config.seed)
    policy = create_policy(config.actor.model, config.env.train.mapping, env.spec, config.seed)
    engine = LocalEngine(config, policy, [env], config.seed, CPU, tmp_path, eval_env)
    try:
        engine.collect(0, lambda: False)
        engine.update(0, lambda: False)
        in_training = engine.evaluate(config.env.eval.num_episodes)
    finally:
        env.close()
        eval_env.close()
    engine.policy.save(tmp_path / "model")
    of_training = chosen.copy()
    chosen.clear()
    alone = groot_experiment(f"actor.model.model_path={tmp_path / 'model'}", *settings)
    assert play(alone, tmp_path, PlayOptions()).episodes == in_training
    assert len(chosen) == len(of_training) > 0
    assert all(torch.equal(one, other) for one, other in zip(chosen, of_training, strict=True))


def test_what_acts_in_bf16_holds_its_products_in_bf16(groot_start: Path) -> None:
    config = groot_experiment(f"actor.model.model_path={groot_start}", "actor.model.precision=bf16").config
    env = create_env(config.env.eval, "eval", 4)
    env.close()
    policy = create_policy(config.actor.model, config.env.eval.mapping, env.spec, 0, "env.eval.mapping")
    acting = policy_to_evaluate(policy, config, CPU)
    products = [layer for layer in acting.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    assert {layer.weight.dtype for layer in products} == {torch.bfloat16}
    assert not acting.training
