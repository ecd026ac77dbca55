# ruff: noqa: E402 (imports below importorskip)
"""integrations/trl_grpo.py against the real TRL, on random models: pytest tests/test_integrations_trl.py"""

import json
import math

import pytest
import torch

pytest.importorskip("trl", reason="needs TRL: pip install --no-deps -r requirements-integrations.txt")

from helpers import HERE, torchrun
from trl_runs import DATASET, UPDATES, VOCABULARY, GRPOTrainer, Witness, make_model, make_trainer, reward

from clipping import EPS, M, U, clipped_surrogate, region_masks, threshold
from integrations.trl_grpo import LOSS_TYPES, STATE, FlexibleGRPOTrainer
from methods.track import region_weights
from schedules import SCHEDULES, make_schedule


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    """TRL would take a launcher's variables, which another test may have left, for a job of several processes."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def run(model, tmp_path):
    def run(cls, resume=None, **options):
        trainer = make_trainer(cls, model, tmp_path / "out", **options)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    return run


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def logs(trainer, first=0):
    """What was logged from an optimizer step on, but for times and for what only our class logs."""
    lines = [line for line in trainer.state.log_history if "loss" in line and line["step"] > first]
    return [{k: v for k, v in line.items() if not k.startswith("flexible/") and "time" not in k} for line in lines]


def reports(trainer):
    """The numbers of each rollout batch."""
    lines = [line for line in trainer.state.log_history if "flexible/entropy" in line]
    return [{k.removeprefix("flexible/"): v for k, v in line.items() if k.startswith("flexible/")} for line in lines]


def clipped(trainer):
    return sum(line["clip_ratio/region_mean"] for line in logs(trainer)) > 0


# ------------------------------------------------------------------------------------------------------ TRL's own GRPO


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_static_is_trl_to_the_bit(run, loss_type):
    """Also with a KL term, several iterations and gradient accumulation, which change how often the batch is used."""
    options = dict(loss_type=loss_type)
    if loss_type in ("grpo", "bnpo"):
        options |= dict(beta=0.1, num_iterations=2, gradient_accumulation_steps=2)
    theirs, ours = run(GRPOTrainer, **options), run(FlexibleGRPOTrainer, schedule="static", **options)
    assert clipped(theirs)
    assert torch.equal(weights(theirs), weights(ours))
    assert logs(theirs) == logs(ours)


def test_clip_higher_is_epsilon_high(run):
    theirs, ours = run(GRPOTrainer, epsilon_high=0.28), run(FlexibleGRPOTrainer, schedule="clip-higher")
    assert torch.equal(weights(theirs), weights(ours))
    assert not torch.equal(weights(ours), weights(run(FlexibleGRPOTrainer, schedule="static")))  # 0.28 was of effect


def test_static_is_trl_to_the_bit_with_lora(run):
    """The adapter is what is trained, and the model under it stays."""
    peft = pytest.importorskip("peft", reason="needs peft: pip install --no-deps -r requirements-integrations.txt")
    lora = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
    theirs, ours = (
        run(cls, peft_config=lora, beta=0.1, **options)
        for cls, options in ((GRPOTrainer, {}), (FlexibleGRPOTrainer, {"schedule": "static"}))
    )
    assert clipped(theirs) and logs(theirs) == logs(ours)
    assert torch.equal(weights(theirs), weights(ours))
    other = run(FlexibleGRPOTrainer, schedule="id", peft_config=lora, beta=0.1)
    assert not torch.equal(weights(other), weights(ours))
    parts = zip(ours.model.named_parameters(), other.model.named_parameters())
    assert {name for (name, a), (_, b) in parts if not torch.equal(a, b)} == {
        name for name, parameter in ours.model.named_parameters() if parameter.requires_grad
    }


# ------------------------------------------------------------------------------------------------- the steps of a run


@pytest.mark.parametrize("name", SCHEDULES)
def test_thresholds_are_the_schedules(run, name):
    batches, options = 4, {}
    if name == "od":
        options = {"od_ratio": 0.99999}  # so that it raises as soon as H falls at all
    trainer = run(Witness, batches=batches, schedule=name, schedule_options=options)
    schedule = make_schedule(name, batches, **options)
    lines = [schedule(step, report["entropy"]) for step, report in enumerate(reports(trainer))]
    assert [batch["lines"] for batch in trainer.batches] == lines and len(lines) == batches
    for i, at in enumerate(trainer.losses):
        upper, lower = lines[i // UPDATES]
        p = at["logps"].exp()
        assert torch.equal(at["epsilon_high"], threshold(p, upper))
        assert torch.equal(at["epsilon_low"], threshold(p, lower))
    for report, (upper, lower) in zip(reports(trainer), lines):
        assert (report["upper_slope"], report["upper_intercept"]) == upper
        assert (report["lower_slope"], report["lower_intercept"]) == lower
    assert name != "od" or lines[0] == (EPS, M)


@pytest.mark.parametrize("target", [None, "up-down"])
def test_loss_in_a_run_is_clipped_surrogate(run, target):
    trainer = run(Witness, loss_type="bnpo", schedule="static" if target else "id", target=target)
    assert clipped(trainer)
    for at in trainer.losses:
        inputs, mask = at["inputs"], at["inputs"]["completion_mask"].bool()
        old_logp, logp = inputs["old_per_token_logps"], at["logps"].requires_grad_()
        loss, _ = clipped_surrogate(old_logp, logp, inputs["advantages"], mask, *at["lines"])
        loss = loss.sum() / mask.sum()
        assert torch.equal(loss, at["loss"]) and torch.equal(torch.autograd.grad(loss, logp)[0], at["gradient"])


def test_track_weights_the_regions(run):
    trainer = run(Witness, target="0:1,1:1.5")
    report = reports(trainer)[0]
    # methods/track.py with its default constants at step 0 of 3, where H = H_init: u = (kp + ki) ln(next target / H)
    assert report["target"] == report["entropy"]
    assert report["gain"] == pytest.approx(4.2 * math.log(1 + 0.5 / 3), rel=1e-12)
    for batch, report in zip(trainer.batches, reports(trainer)):
        output, advantages = batch["output"], batch["advantages"][:, None]
        regions = region_masks(output["old_per_token_logps"], batch["trl_entropy"], advantages)
        assert torch.equal(output["advantages"], region_weights(regions, report["gain"]) * advantages)


def test_advantages_have_another_constant_than_ours(run):
    """TRL adds 1e-4 to the standard deviation; `grpo.group_advantages` and verl add 1e-6."""
    for batch in run(Witness, schedule="id").batches:
        output = batch["output"]
        ids = [row[mask.bool()].tolist() for row, mask in zip(output["completion_ids"], output["completion_mask"])]
        groups = torch.tensor(reward(ids)).view(-1, 4)
        expected = (groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)
        torch.testing.assert_close(batch["advantages"], expected.flatten())


@pytest.mark.parametrize("beta", [0.0, 0.1])  # with a KL term there is a reference model, too
def test_entropy_is_that_of_the_old_policy(run, beta):
    """At the sampling temperature. 260 terms of at most 1/e nats, each off by a few float32 roundings, are the
    tolerance."""
    trainer = run(Witness, schedule="id", temperature=0.9, beta=beta)
    tolerance = VOCABULARY * 4 * torch.finfo(torch.float32).eps
    for batch, report in zip(trainer.batches, reports(trainer)):
        assert report["entropy"] == pytest.approx(torch.tensor(batch["entropy"]).mean().item(), abs=tolerance)
    first, current = reports(trainer)[0]["entropy"], logs(trainer)[UPDATES - 1]["entropy"]
    assert abs(first - current) > 10 * tolerance  # TRL's own number is another one


def test_entropy_is_that_of_all_ranks(model, tmp_path):
    torchrun(HERE / "tests/trl_runs.py", model, tmp_path)
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert ranks[0]["state"] == ranks[1]["state"]
    for step, logged in enumerate(ranks[0]["logged"]):
        mine, other = (rank["entropy"][step] for rank in ranks)
        together = torch.tensor(mine + other, dtype=torch.float64).mean().item()
        assert logged == pytest.approx(together, abs=VOCABULARY * 4 * torch.finfo(torch.float32).eps)
        assert len(mine) != len(other)  # so a mean of the ranks' means would be wrong


def test_evaluation_decides_nothing(model, tmp_path):
    """It samples and takes a loss too, with the model in evaluation mode."""
    options = dict(eval_dataset=DATASET.select(range(4)), eval_strategy="steps", eval_steps=2, eval_on_start=True)
    trainer = make_trainer(FlexibleGRPOTrainer, model, tmp_path, schedule="od", **options)
    trainer.train()
    assert len(reports(trainer)) == 3
    evaluations = [line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line]
    assert len(evaluations) == 1 + 3 * UPDATES // 2


# --------------------------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize(
    "options", [dict(schedule="od", schedule_options={"od_ratio": 0.99}), dict(target="up-down"), dict(schedule="id")]
)
def test_resume_is_exact(run, tmp_path, options):
    """From a checkpoint half-way. With od, the turn is behind it: what follows depends on the state that was saved."""
    whole = run(FlexibleGRPOTrainer, batches=6, save_strategy="steps", save_steps=3 * UPDATES, **options)
    if options.get("schedule") == "od":
        intercepts = [(report["upper_intercept"], report["lower_intercept"]) for report in reports(whole)]
        assert (intercepts[0], intercepts[2]) == ((EPS[1], M[1]), (U[1], EPS[1]))
    checkpoint = str(tmp_path / f"out/checkpoint-{3 * UPDATES}")
    resumed = run(FlexibleGRPOTrainer, batches=6, resume=checkpoint, **options)
    assert reports(resumed) == reports(whole)
    assert logs(resumed) == logs(whole)
    assert torch.equal(weights(resumed), weights(whole))


def test_resume_with_other_settings_is_refused(run, tmp_path):
    run(FlexibleGRPOTrainer, batches=1, save_strategy="steps", save_steps=UPDATES, schedule="id")
    checkpoint = tmp_path / f"out/checkpoint-{UPDATES}"
    for options in (dict(batches=2, schedule="id"), dict(batches=1, schedule="did"), dict(batches=1, target="up-down")):
        with pytest.raises(
            ValueError, match="the checkpoint is that of a run with .*'schedule': 'id', 'total_steps': 1"
        ):
            run(FlexibleGRPOTrainer, resume=str(checkpoint), **options)
    (checkpoint / STATE).unlink()  # as if TRL's own trainer had written it
    with pytest.raises(FileNotFoundError, match=STATE):
        run(FlexibleGRPOTrainer, batches=1, resume=str(checkpoint), schedule="id")


def test_example_trains(model, tmp_path, monkeypatch, capsys):
    """Two rollout batches, with the random model, which earns nothing, in place of the built-in one."""
    from integrations import trl_example

    monkeypatch.setattr(trl_example.tiny, "ensure_model", lambda: model)
    monkeypatch.setattr("sys.argv", ["trl_example", "--steps", "2", "--schedule", "did", "--output", str(tmp_path)])
    trl_example.main()
    printed = capsys.readouterr().out.splitlines()[-2:]
    lines = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    entropy = [line["flexible/entropy"] for line in lines if "flexible/entropy" in line]
    assert printed == ["reward 0.000 -> 0.000", f"entropy {entropy[0]:.3f} -> {entropy[1]:.3f} nats"]


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(loss_type="cispo", epsilon_high=5.0), "so that each token is clipped by its own ratio"),
        (dict(loss_type="sapo"), "so that each token is clipped by its own ratio"),
        (
            dict(importance_sampling_level="sequence", loss_type="grpo"),
            "so that each token is clipped by its own ratio",
        ),
        (dict(epsilon=0.1), "set by the schedule"),
        (dict(epsilon_high=0.28), "set by the schedule"),
        (dict(steps_per_generation=1), "one optimizer step per rollout batch"),
        (dict(gradient_accumulation_steps=UPDATES), "one optimizer step per rollout batch"),
        (dict(gradient_accumulation_steps=3), "must be a multiple of gradient_accumulation_steps = 3"),
    ],
)
def test_settings_in_which_no_schedule_works_are_refused(model, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(FlexibleGRPOTrainer, model, tmp_path, schedule="id", **options)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(max_steps=2 * UPDATES + 1, schedule="id"), "no whole number of rollout batches of 4 optimizer steps"),
        (dict(schedule="increase"), "unknown schedule 'increase'"),
        (dict(target="up"), "'up' is neither one of"),
    ],
)
def test_wrong_steps_and_names_are_refused_before_the_first_rollout(model, tmp_path, options, message):
    trainer = make_trainer(Witness, model, tmp_path, **options)
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert not trainer.batches
