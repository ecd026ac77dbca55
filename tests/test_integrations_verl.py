# ruff: noqa: E402 (imports below importorskip)
"""integrations/verl_loss.py through verl's own ppo_loss, and integrations/verl_trainer.py on stubs, because verl's
trainer needs a Ray cluster and its workers need GPUs: pytest tests/test_integrations_verl.py"""

import ast
import sys
import types
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

PIP = "needs verl: pip install --no-deps -r requirements-integrations.txt"
pytest.importorskip("verl", reason=PIP)
pytest.importorskip("ray", reason=PIP)

from omegaconf import OmegaConf
from tensordict import TensorDict
from verl.utils import tensordict_utils
from verl.workers.config import ActorConfig, PolicyLossConfig
from verl.workers.utils.losses import ppo_loss

from clipping import EPS, M, U, clipped_surrogate, region_masks
from integrations.verl_loss import flexible_loss, ppo_loss_with_lines
from methods import make_method
from methods.track import region_weights
from schedules import make_schedule

LENGTHS = [5, 1, 7, 3]  # tokens of the responses; every prompt has PROMPT
PROMPT = 2
MODES = ["token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"]


def jagged(rows):
    return torch.nested.as_nested_tensor(list(rows), layout=torch.jagged)


def a_batch(seed=0, weights=False):
    """(data, logp): verl's nested TensorDict, and ln π [tokens] with gradient. A token in five is masked out, and log r
    is up to 200 on either side."""
    generator = torch.Generator().manual_seed(seed)

    def per_token(make):
        return [make(n, generator=generator) for n in LENGTHS]

    old_logp = [-3 * x for x in per_token(torch.rand)]
    logp = [(o + 0.5 * x).clamp(max=-0.01) for o, x in zip(old_logp, per_token(torch.randn))]
    old_logp[0][0], logp[0][0], old_logp[2][1], logp[2][1] = -200.0, -0.01, -0.01, -200.0
    data = {
        "prompts": jagged(torch.ones(PROMPT, dtype=torch.long) for _ in LENGTHS),
        "responses": jagged(torch.ones(n, dtype=torch.long) for n in LENGTHS),
        "response_mask": jagged((x > 0.2).long() for x in per_token(torch.rand)),
        "old_log_probs": jagged(old_logp),
        "advantages": jagged(per_token(torch.randn)),
        "entropy": jagged(per_token(torch.rand)),
    }
    if weights:
        data["rollout_is_weights"] = jagged(per_token(torch.rand))
    data = TensorDict(data, batch_size=len(LENGTHS))
    tensordict_utils.assign_non_tensor(
        data, dp_size=1, batch_num_tokens=None, global_batch_size=None, max_response_len=max(LENGTHS)
    )
    return data, torch.cat(logp).requires_grad_()


def a_config(loss_mode, loss_agg_mode="token-mean", **options):
    policy_loss = PolicyLossConfig(loss_mode=loss_mode)
    return ActorConfig(
        strategy="fsdp",
        rollout_n=1,
        ppo_micro_batch_size_per_gpu=1,
        policy_loss=policy_loss,
        loss_agg_mode=loss_agg_mode,
        **options,
    )


def through_verl(loss_fn, data, logp, config):
    """(loss, gradient, metrics). The model's output has a number for every token of prompt and response, of which verl
    takes the one before each response token."""
    rows = [torch.cat([x.new_zeros(PROMPT - 1), x, x.new_zeros(1)]) for x in logp.split(LENGTHS)]
    loss, metrics = loss_fn(config=config, model_output={"log_probs": jagged(rows)}, data=data, dp_group=None)
    (gradient,) = torch.autograd.grad(loss, logp)
    return loss.item(), gradient, {name: metric.aggregate() for name, metric in metrics.items()}


def padded(data, logp=None):
    data = data.to_padded_tensor()
    if logp is not None:
        data["logp"] = torch.nn.utils.rnn.pad_sequence(list(logp.split(LENGTHS)), batch_first=True)
    return data


# ------------------------------------------------------------------------------------------------------------- the loss


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_static_is_vanilla_to_the_bit(mode, weights):
    """Without verl's third clip, which `clip_ratio_c` = 1e30 takes out of the way."""
    data, logp = a_batch(weights=weights)
    vanilla = through_verl(ppo_loss, data, logp, a_config("vanilla", mode, clip_ratio_c=1e30))

    def static(**kwargs):
        return ppo_loss_with_lines(upper=EPS, lower=EPS, **kwargs)

    loss, gradient, metrics = through_verl(static, data, logp, a_config("flexible", mode))
    assert loss == vanilla[0] and torch.equal(gradient, vanilla[1])
    assert metrics["actor/ppo_kl"] == vanilla[2]["actor/ppo_kl"]
    assert metrics["actor/pg_clipfrac"] == pytest.approx(vanilla[2]["actor/pg_clipfrac"], rel=1e-6)  # float32
    assert metrics["actor/clip_frac_high"] > 0 and metrics["actor/clip_frac_low"] > 0


def test_lines_are_those_that_were_sent():
    data, logp = a_batch()
    for upper, lower in [(U, EPS), (EPS, M), (U, M)]:

        def with_lines(**kwargs):
            return ppo_loss_with_lines(upper=upper, lower=lower, **kwargs)

        loss, gradient, _ = through_verl(with_lines, data, logp, a_config("flexible"))
        x = padded(data, logp)
        mask = x["response_mask"].bool()
        ours, _ = clipped_surrogate(x["old_log_probs"], x["logp"], x["advantages"], mask, upper, lower)
        ours = ours.sum() / mask.sum()
        assert loss == ours.item() and torch.equal(gradient, torch.autograd.grad(ours, logp)[0])


def test_without_lines_the_loss_refuses():
    data, logp = a_batch()
    x = padded(data, logp)
    with pytest.raises(ValueError, match="was given no thresholds: set trainer.v1.trainer_mode=flexible"):
        flexible_loss(x["old_log_probs"], x["logp"], x["advantages"], x["response_mask"], config=a_config("flexible"))


# ----------------------------------------------------------------------------------------------- the driver, on stubs


class Queue:
    """Instead of TransferQueue: what it does with the fields of one batch."""

    def __init__(self, data):
        self.data = data

    def kv_batch_get(self, keys, partition_id, select_fields):
        return self.data.select(*[field for field in select_fields if field in self.data.keys()])

    def kv_batch_put(self, keys, partition_id, fields):
        self.data.update(fields)
        return types.SimpleNamespace(keys=keys, partition_id=partition_id, put=True)


class PPOTrainerSync:
    """Instead of verl's trainer and its workers: the attributes and the calls that the subclass meets."""

    def __init__(self, config):
        self.config, self.actor_rollout_wg = config, types.SimpleNamespace(set_loss_fn=self.set_loss_fn)
        assert config.trainer.v1.trainer_mode == "sync"  # verl looks up more than the class by this name

    def set_loss_fn(self, loss_fn):
        self.loss_fn = loss_fn

    def _load_checkpoint(self):
        self.total_training_steps, self.steps_per_epoch = self.config.trainer.total_training_steps, 4
        self.global_steps = self.config.trainer.get("resumed", 0)

    def _save_checkpoint(self):
        self.saved = True

    def _update_actor(self, batch, metrics):
        self.updated = batch
        return batch


STUBBED = [
    "__init__(self, config)",
    "_load_checkpoint(self)",
    "_save_checkpoint(self)",
    "_update_actor(self, batch, metrics)",
]


def test_stubs_have_the_signatures_of_verl():
    """Read from verl's source, as its trainer cannot be imported without the packages of a whole training."""
    folder = Path(find_spec("verl").origin).parent
    tree = ast.parse((folder / "trainer/ppo/v1/trainer_base.py").read_text())
    (base,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "PPOTrainer"]
    methods = {node.name: [a.arg for a in node.args.args] for node in base.body if isinstance(node, ast.FunctionDef)}
    for signature in STUBBED:
        name = signature.partition("(")[0]
        assert f"{name}({', '.join(methods[name])})" == signature
    setup = ast.get_source_segment((folder / "trainer/ppo/v1/trainer_base.py").read_text(), base)
    assert setup.index("self._init_dataloader()") < setup.index("self._load_checkpoint()")  # T is known in the latter


@pytest.fixture
def verl_trainer(monkeypatch):
    """integrations/verl_trainer.py, imported with stubs."""
    modules = {
        "transfer_queue": types.ModuleType("transfer_queue"),
        "verl.trainer.ppo.v1": types.ModuleType("verl.trainer.ppo.v1"),
        "verl.trainer.ppo.v1.trainer_base": types.SimpleNamespace(register_trainer=lambda name: lambda cls: cls),
        "verl.trainer.ppo.v1.trainer_sync": types.SimpleNamespace(PPOTrainerSync=PPOTrainerSync),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "integrations.verl_trainer", raising=False)
    import integrations.verl_trainer

    # verl builds it with hydra, whose parser of 2018 does not go with the one that math-verify needs
    monkeypatch.setattr(integrations.verl_trainer, "omega_conf_to_dataclass", lambda actor: a_config("flexible"))
    yield integrations.verl_trainer
    del sys.modules["integrations.verl_trainer"]


DEFAULTS = OmegaConf.load(Path(find_spec("verl").origin).parent / "trainer/config/_generated_ppo_trainer.yaml")


def verl_config(tmp_path, *overrides, steps=4, schedule="id"):
    """verl's default configuration with what the launch command of integrations/README.md sets."""
    settings = [
        "trainer.v1.trainer_mode=flexible",
        "actor_rollout_ref.actor.policy_loss.loss_mode=flexible",
        f"trainer.entropy_control.schedule={schedule}",
        "data.train_batch_size=512",
        f"trainer.total_training_steps={steps}",
        f"trainer.default_local_dir={tmp_path}",
    ]
    return OmegaConf.merge(DEFAULTS, OmegaConf.from_dotlist([*settings, *overrides]))


def run_steps(verl_trainer, config, steps, weights=False):
    """The trainer after these steps, and for each step (data, metrics, lines)."""
    trainer = verl_trainer.FlexiblePPOTrainer(config)
    trainer._load_checkpoint()
    saw = []
    for step in steps:
        data, _ = a_batch(seed=step, weights=weights)
        verl_trainer.tq.kv_batch_get, verl_trainer.tq.kv_batch_put = (
            (queue := Queue(data)).kv_batch_get,
            queue.kv_batch_put,
        )
        metrics, trainer.global_steps = {"other": 1.0}, step + 1  # verl counts from 1
        batch = type("Batch", (types.SimpleNamespace,), {"__len__": lambda self: len(LENGTHS)})(
            keys=[], partition_id="train"
        )
        assert trainer._update_actor(batch, metrics) is trainer.updated
        saw.append((data, metrics, (trainer.loss_fn.keywords["upper"], trainer.loss_fn.keywords["lower"])))
    return trainer, saw


def mean_entropy(data):
    x = padded(data)
    return x["entropy"][x["response_mask"].bool()].double().mean().item()


@pytest.mark.parametrize("schedule", ["id", "did", "od"])
def test_driver_sends_the_lines_of_each_step(verl_trainer, tmp_path, schedule):
    trainer, saw = run_steps(verl_trainer, verl_config(tmp_path, schedule=schedule), range(4))
    expected = make_schedule(schedule, 4)
    for step, (data, metrics, lines) in enumerate(saw):
        assert lines == expected(step, mean_entropy(data))
        assert metrics["flexible/entropy"] == pytest.approx(mean_entropy(data), rel=1e-12) and metrics["other"] == 1
        assert (data["rollout_is_weights"].values() == 1).all()
    data, logp = a_batch()
    loss, _, _ = through_verl(trainer.loss_fn, data, logp, trainer.actor_config)  # what a worker would do with it
    x = padded(data, logp)
    mask = x["response_mask"].bool()
    ours, _ = clipped_surrogate(x["old_log_probs"], x["logp"], x["advantages"], mask, *saw[-1][2])
    assert loss == (ours.sum() / mask.sum()).item()


@pytest.mark.parametrize("weights", [False, True])
def test_driver_multiplies_gains_into_the_weights_that_are_there(verl_trainer, tmp_path, weights):
    config = verl_config(tmp_path, "trainer.entropy_control.target=up-down", schedule="static")
    trainer, saw = run_steps(verl_trainer, config, range(3), weights=weights)
    track = make_method("track", "up-down", 4)
    for step, (data, metrics, lines) in enumerate(saw):
        x = padded(data)
        track.observe(step, mean_entropy(data))
        assert metrics["flexible/gain"] == pytest.approx(track.output, rel=1e-9) and lines == (EPS, EPS)
        gains = region_weights(
            region_masks(x["old_log_probs"], x["entropy"], x["advantages"]), metrics["flexible/gain"]
        )
        before = (
            padded(a_batch(seed=step, weights=True)[0])["rollout_is_weights"] if weights else torch.ones_like(gains)
        )
        there = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
        assert torch.equal(x["rollout_is_weights"], torch.where(there, gains * before, 0.0))
        assert data["rollout_is_weights"].offsets().tolist() == data["old_log_probs"].offsets().tolist()
        assert trainer.updated.put  # the batch that knows of the new field


@pytest.mark.parametrize("options", [("od", []), ("static", ["trainer.entropy_control.target=up-down"])])
def test_driver_resumes_exactly(verl_trainer, tmp_path, options):
    schedule, overrides = options
    _, whole = run_steps(verl_trainer, verl_config(tmp_path, *overrides, schedule=schedule), range(4))
    trainer, _ = run_steps(verl_trainer, verl_config(tmp_path, *overrides, schedule=schedule), range(2))
    trainer._save_checkpoint()
    assert trainer.saved and (tmp_path / "global_step_2" / verl_trainer.STATE).exists()
    for resume in ([], ["trainer.resume_mode=resume_path", f"trainer.resume_from_path={tmp_path}/global_step_2"]):
        config = verl_config(tmp_path, "trainer.resumed=2", *overrides, *resume, schedule=schedule)
        _, rest = run_steps(verl_trainer, config, range(2, 4))
        assert [(metrics, lines) for _, metrics, lines in rest] == [(metrics, lines) for _, metrics, lines in whole[2:]]
    with pytest.raises(ValueError, match="the checkpoint is that of a run with"):
        run_steps(verl_trainer, verl_config(tmp_path, "trainer.resumed=2", schedule="did"), [])


@pytest.mark.parametrize(
    "override, message",
    [
        ("actor_rollout_ref.actor.policy_loss.loss_mode=vanilla", "loss_mode must be flexible, got vanilla"),
        ("actor_rollout_ref.actor.clip_ratio_high=0.28", "leave clip_ratio_high at 0.2, got 0.28"),
        ("data.train_batch_size=256", "one optimizer step per rollout batch"),
        ("trainer.critic_warmup=5", "critic_warmup=5"),
        ("algorithm.rollout_correction.bypass_mode=True", "bypass_mode does not compute π_old"),
        ("distillation.enabled=True", "distillation has a loss function of its own"),
        (
            "trainer.total_training_steps=1000",
            "total_training_steps=1000 is more than 30 epochs of 4 steps",
        ),
        ("trainer.entropy_control.schedule=up", "unknown schedule 'up'"),
    ],
)
def test_driver_refuses_what_cannot_work(verl_trainer, tmp_path, override, message):
    with pytest.raises(ValueError, match=message):
        run_steps(verl_trainer, verl_config(tmp_path, override), [])
