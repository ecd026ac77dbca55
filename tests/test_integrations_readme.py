"""The three snippets of integrations/README.md, run as they stand, but for verl's, which is looked up: pytest
tests/test_integrations_readme.py"""

import re
import shlex
import types
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from helpers import HERE

from clipping import EPS, U
from integrations.flexible import EntropyControl
from logprobs import token_logp_and_entropy

PIP = "pip install --no-deps -r requirements-integrations.txt"
TRL, VERL, OTHER, TRL_REWARD, VERL_REWARD = re.findall(
    r"^```(?:python|bash)\n(.*?)^```", (HERE / "integrations/README.md").read_text(), re.M | re.S
)


@pytest.mark.skipif(not find_spec("trl"), reason=f"needs TRL: {PIP}")
def test_trl(tmp_path, monkeypatch):
    import trl_runs

    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    theirs = trl_runs.make_trainer(trl_runs.GRPOTrainer, trl_runs.make_model(tmp_path / "model"), tmp_path / "run")
    script = {
        "model": str(tmp_path / "model"),
        "reward": trl_runs.reward,
        "config": theirs.args,
        "dataset": trl_runs.DATASET,
    }
    exec(TRL, script)
    lines = [line for line in script["trainer"].state.log_history if "flexible/entropy" in line]
    assert [line["flexible/upper_intercept"] for line in lines][0] == U[1] and len(lines) == 3


@pytest.mark.skipif(not (find_spec("verl") and find_spec("ray")), reason=f"needs verl: {PIP}")
def test_verl():
    """What can be run of it here: the settings exist in verl's configuration, or are added with a +, and the module
    that is to be imported and the class that is to be chosen are there. The script is verl's, and verl's package does
    not have it."""
    from omegaconf import OmegaConf

    from integrations.verl_loss import LOSS_MODE

    path, modules, bash, script, *overrides = shlex.split(VERL.replace("\\\n", " "))
    assert path.startswith("PYTHONPATH=") and (bash, script[-3:]) == ("bash", ".sh")
    module = modules.removeprefix("VERL_USE_EXTERNAL_MODULES=")
    assert (HERE / f"{module.replace('.', '/')}.py").exists()
    config = OmegaConf.load(Path(find_spec("verl").origin).parent / "trainer/config/_generated_ppo_trainer.yaml")
    for override in overrides:
        name, _, value = override.partition("=")
        if not name.startswith("+"):
            assert OmegaConf.select(config, name, default="missing") != "missing", name
        OmegaConf.update(config, name.lstrip("+"), value)
    assert config.trainer.v1.trainer_mode == config.actor_rollout_ref.actor.policy_loss.loss_mode == LOSS_MODE
    EntropyControl(total_steps=2, **config.trainer.entropy_control)


@pytest.mark.skipif(not find_spec("trl"), reason=f"needs TRL: {PIP}")
def test_the_verifier_in_trl(tmp_path, monkeypatch):
    """TRL calls it with each completion and its row's answer: in two rollout batches of a random model no response has
    a box. What the function makes of responses that have one is looked at below."""
    import trl_runs

    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    model = trl_runs.make_model(tmp_path / "model")
    config = trl_runs.make_trainer(trl_runs.GRPOTrainer, model, tmp_path / "run", batches=2).args
    dataset = trl_runs.DATASET.add_column("answer", ["204"] * len(trl_runs.DATASET))
    script = {"GRPOTrainer": trl_runs.GRPOTrainer, "model": model, "config": config, "dataset": dataset}
    exec(TRL_REWARD, script)
    script["trainer"].train()
    assert {line["rewards/trl_reward/mean"] for line in script["trainer"].state.log_history if "reward" in line} == {0}


def test_trl_reward_of_texts_and_of_messages():
    from integrations.rewards import trl_reward

    texts = [r"so \boxed{1/2}", r"so \boxed{0.5}", r"so \boxed{2}", "so 1/2"]
    messages = [[{"role": "assistant", "content": text}] for text in texts]
    assert trl_reward(completions=texts, answer=["1/2"] * 4, prompts=texts) == [1.0, 1.0, 0.0, 0.0]
    assert trl_reward(completions=messages, answer=["1/2"] * 4) == [1.0, 1.0, 0.0, 0.0]


@pytest.mark.skipif(not (find_spec("verl") and find_spec("ray")), reason=f"needs verl: {PIP}")
def test_the_verifier_in_verl():
    """Through verl's own loader, and with the arguments that verl's reward manager passes."""
    from omegaconf import OmegaConf
    from verl.trainer.ppo.reward import get_custom_reward_fn

    config = OmegaConf.load(Path(find_spec("verl").origin).parent / "trainer/config/_generated_ppo_trainer.yaml")
    overrides = shlex.split(VERL_REWARD.replace("\\\n", " ").replace("/path/to/flexible-entropy-control", str(HERE)))
    for override in overrides:
        name, _, value = override.partition("=")
        assert OmegaConf.select(config, name, default="missing") != "missing", name
        OmegaConf.update(config, name, value)
    compute_score = get_custom_reward_fn(config)
    rest = dict(data_source="math", extra_info={"num_turns": None})
    right = compute_score(solution_str=r"so \boxed{0.5}", ground_truth="1/2", **rest)
    assert right == {"score": 1.0, "acc": 1.0, "reason": "correct"}
    assert compute_score(solution_str="so 0.5", ground_truth="1/2", **rest)["score"] == 0.0


def test_anything_else():
    """In a loop that trains logits of 5 tokens in 3 x 4 states."""
    torch.manual_seed(0)
    logits = torch.nn.Parameter(torch.randn(3, 4, 5))
    optimizer, tokens, logged = torch.optim.SGD([logits], lr=10.0), torch.randint(5, (3, 4)), []

    def stats():
        logp, entropy = token_logp_and_entropy(logits.flatten(0, 1), tokens.flatten())
        return logp.view(3, 4), entropy.view(3, 4)

    def rollout():
        old_logp, entropy = (x.detach() for x in stats())
        mask = torch.arange(4) < torch.tensor([[4], [2], [1]])
        return types.SimpleNamespace(old_logp=old_logp, entropy=entropy, advantages=torch.randn(3, 1), mask=mask)

    def update(loss):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    before = logits.detach().clone()
    script = dict(
        optimizer_steps=12,
        updates=3,
        rollout=rollout,
        forward=lambda batch: stats()[0],
        update=update,
        log=logged.append,
    )
    exec(OTHER, script)
    assert [report["upper_intercept"] for report in logged] == pytest.approx(
        [0.5, 0.35, 0.2, 0.2]
    )  # ID's upper line at T = 4
    assert [report["lower_intercept"] for report in logged] == pytest.approx([0.2, 0.2, 0.2, 0.25])
    assert (logits != before)[:, 0].any() and torch.equal(logits[2, 1:], before[2, 1:])  # masked states stay
    assert script["upper"] == EPS
