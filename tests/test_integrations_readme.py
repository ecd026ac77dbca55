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
TRL, VERL, OTHER = re.findall(
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
