"""integrations/flexible.py, which needs torch alone: pytest tests/test_integrations_flexible.py"""

import json
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from helpers import HERE

from clipping import region_masks
from integrations.flexible import EntropyControl, rollout_batches
from methods import make_method
from methods.track import region_weights
from schedules import SCHEDULES, make_schedule

STEPS = 8


def a_batch(step):
    """A ragged batch: (old_logp, entropy, advantages, mask). Entropy falls, then rises, from step to step."""
    generator = torch.Generator().manual_seed(step)
    old_logp, entropy = -3 * torch.rand(2, 4, 6, generator=generator)
    mask = torch.arange(6) < torch.tensor([[6], [1], [0], [4]])
    level = abs(step - STEPS / 2) + 0.1
    return old_logp, -level * entropy, torch.tensor([[1.0], [-1.0], [0.5], [-0.5]]), mask


def mean_entropy(step):
    _, entropy, _, mask = a_batch(step)
    return entropy[mask].double().mean().item()


@pytest.mark.parametrize("name", SCHEDULES)
def test_lines_are_the_schedules(name):
    control, schedule = EntropyControl(name, STEPS), make_schedule(name, STEPS)
    for step in range(STEPS):
        lines, weights, report = control.decide(step, *a_batch(step))
        assert lines == schedule(step, mean_entropy(step))
        assert torch.equal(weights, torch.ones(4, 6))
        assert report["entropy"] == pytest.approx(mean_entropy(step), rel=1e-12)
        upper, lower = lines
        assert upper == (report["upper_slope"], report["upper_intercept"])
        assert lower == (report["lower_slope"], report["lower_intercept"])


def test_weights_are_those_of_track():
    """Up to float64 sums in another order."""
    control, track = EntropyControl("static", STEPS, target="up-down"), make_method("track", "up-down", STEPS)
    for step in range(STEPS):
        old_logp, entropy, advantages, mask = a_batch(step)
        _, weights, report = control.decide(step, old_logp, entropy, advantages, mask)
        track.observe(step, mean_entropy(step))
        assert report["gain"] == pytest.approx(track.output, rel=1e-9)
        assert torch.equal(weights, region_weights(region_masks(old_logp, entropy, advantages), report["gain"]))
        assert weights.min() >= 0


def test_masked_tokens_do_not_count():
    """Whatever they hold, and whether the mask is of bools or of ints."""
    old_logp, entropy, advantages, mask = a_batch(0)
    spoilt = entropy.masked_fill(~mask, float("nan"))
    _, _, report = EntropyControl("id", STEPS).decide(0, old_logp, spoilt, advantages, mask.int())
    assert report["entropy"] == pytest.approx(mean_entropy(0), rel=1e-12)
    with pytest.raises(ValueError, match="no token of step 0 counts"):
        EntropyControl("id", STEPS).decide(0, old_logp, entropy, advantages, torch.zeros_like(mask))


@pytest.mark.parametrize("step", [-1, STEPS])
def test_steps_outside_of_the_run_are_refused(step):
    """Past T, λ of id and did would lie below −1, and the lower line would be one that the paper has not."""
    with pytest.raises(ValueError, match=f"step {step} lies outside of the {STEPS} rollout batches"):
        EntropyControl("id", STEPS).decide(step, *a_batch(0))


@pytest.mark.parametrize("options", [dict(schedule="od", od_ratio=0.5), dict(schedule="static", target="up-down")])
def test_state_goes_on_where_it_was(options):
    """Through JSON, at every step of a run: with od, before and after its turn."""
    whole = EntropyControl(total_steps=STEPS, **options)
    decided, states = [], []
    for step in range(STEPS):
        states.append(json.dumps(whole.state_dict()))
        decided.append(whole.decide(step, *a_batch(step))[2])
    if options["schedule"] == "od":
        assert len({report["upper_intercept"] for report in decided}) == 2  # it has turned
    for start, state in enumerate(states):
        resumed = EntropyControl(total_steps=STEPS, **options)
        resumed.load_state_dict(json.loads(state))
        assert [resumed.decide(step, *a_batch(step))[2] for step in range(start, STEPS)] == decided[start:]


def test_state_of_another_run_is_refused():
    state = EntropyControl("id", STEPS).state_dict()
    others = [("did", STEPS, None), ("id", STEPS + 1, None), ("id", STEPS, "level")]
    for schedule, steps, target in others:
        with pytest.raises(ValueError, match="the checkpoint is that of a run with .*'schedule': 'id'"):
            EntropyControl(schedule, steps, target).load_state_dict(state)


def test_total_steps_are_rollout_batches():
    assert rollout_batches(6400, 16) == 400
    with pytest.raises(ValueError, match="one optimizer step per rollout batch"):
        rollout_batches(400, 1)
    for steps in (0, 6401):
        with pytest.raises(ValueError, match=f"{steps} optimizer steps are no whole number"):
            rollout_batches(steps, 16)


def test_needs_torch_alone():
    """Of the packages that the tests' environment has besides torch and what torch imports itself."""
    script = """
import sys, torch
before = set(sys.modules)
import integrations.flexible
print(sorted({name.split(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names - {"torch"}))
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=HERE, capture_output=True, text=True)
    assert done.stdout.strip() == "['clipping', 'integrations', 'methods', 'schedules']", done.stderr


def _rank(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    control, half = EntropyControl("od", STEPS, target="up-down"), slice(0, 1) if rank == 0 else slice(1, 4)
    decided = [control.decide(step, *(x[half] for x in a_batch(step)))[2] for step in range(STEPS)]
    (folder / f"{rank}.json").write_text(json.dumps([decided, control.state_dict()]))
    dist.destroy_process_group()


def test_two_ranks_decide_as_one(tmp_path):
    """They have unequal shares of the tokens, 6 and 5. A rank whose share is masked as a whole would not matter
    either."""
    torch.multiprocessing.start_processes(_rank, args=(tmp_path,), nprocs=2, start_method="spawn")
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    assert ranks[0] == ranks[1]
    control = EntropyControl("od", STEPS, target="up-down")
    for step in range(STEPS):
        alone = control.decide(step, *a_batch(step))[2]
        assert ranks[0][0][step] == {name: pytest.approx(value, rel=1e-9) for name, value in alone.items()}
