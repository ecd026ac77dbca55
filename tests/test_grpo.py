"""The training loop, on real FSDP2 ranks: pytest tests/test_grpo.py (about two minutes)"""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import HERE, SMALL, python, tiny_config, torchrun
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from grpo import Batch, group_advantages, update
from tasks import tiny
from trainer.distributed import seed_of
from trainer.rollout import Rollouts

REGIONS = {"E1", "E2", "E3", "E4"}


# -------------------------------------------------------------------------------------------------------- one update


def test_group_advantages_by_hand():
    advantages = group_advantages(torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]), group_size=4)
    # mean 1/4, unbiased std sqrt((9/16 + 3 · 1/16) / 3) = 1/2
    torch.testing.assert_close(advantages, torch.tensor([1.5, -0.5, -0.5, -0.5, 0, 0, 0, 0]), atol=1e-5, rtol=0)
    assert (group_advantages(torch.full((8,), 0.1), 8) == 0).all()  # exactly 0, whatever the mean's rounding


def fixed_batch():
    """A rollout batch of 16 rows (4 groups of 4), made up, with old log-probabilities a little off the model's own."""
    torch.manual_seed(0)
    prompts = [torch.randint(5, 90, (3 + i // 4,), dtype=torch.int32) for i in range(16)]
    responses = [torch.randint(5, 90, (int(n),), dtype=torch.int32) for n in torch.randint(2, 30, (16,))]
    rewards = [float(i % 3 == 0) for i in range(16)]
    old_logp = [-4.5 + 0.3 * torch.randn(len(r)) for r in responses]
    rewards = torch.tensor(rewards)
    rollouts = Rollouts(prompts, responses, torch.cat(old_logp), rewards, torch.ones(16, dtype=torch.bool))
    return rollouts, old_logp, group_advantages(rewards, 4)


def fixed_model(tied: bool) -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    return Qwen2ForCausalLM(Qwen2Config(**SMALL, tie_word_embeddings=tied, initializer_range=0.1))


UPDATE = dict(mini_batches=2, epochs=2, max_prompt_tokens=8, max_response_tokens=32, prompts_per_step=4, group_size=4)

# AdamW at the preset's learning rate; and SGD, since AdamW divides by |g| and so cannot tell a gradient from twice that
# gradient
OPTIMIZERS = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=3e-4, weight_decay=0.1),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
}


def loss_weights(tied: bool) -> list[torch.Tensor]:
    """Ones for the tied model: plain GRPO. For the untied one what importance weights and regions may make of them,
    zeros too."""
    lengths = fixed_batch()[0].lengths.tolist()
    generator = torch.Generator().manual_seed(1)
    return [torch.ones(n) if tied else (3 * torch.rand(n, generator=generator) - 1).clamp(min=0) for n in lengths]


def plain_grpo_update(tied: bool, optimizer: str) -> dict[str, torch.Tensor]:
    """The same update as `update` with the static schedule, written out with nothing of this repository's but its
    shuffling seed: one row at a time, whole logits. The tied model is clipped at 0.2 on both sides, the untied one by U
    above and M below."""
    rollouts, old_logp, advantages = fixed_batch()
    model, weights = fixed_model(tied), loss_weights(tied)
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    for epoch in range(2):
        order = torch.randperm(16, generator=torch.Generator().manual_seed(seed_of(0, 7, "epoch", epoch)))
        for mini_batch in order.chunk(2):
            loss, tokens = 0.0, 0
            for i in mini_batch.tolist():
                prompt, response = rollouts.prompts[i].long(), rollouts.responses[i].long()
                logits = model(torch.cat([prompt, response])[None]).logits[0, len(prompt) - 1 : -1]
                logp = logits.log_softmax(-1)[range(len(response)), response]
                ratio = torch.exp(logp - old_logp[i])
                p = logp.detach().exp()
                low, high = (1 - 0.2, 1 + 0.2) if tied else (1 - (0.3 - 0.13 * p), 1 + (0.5 - 0.25 * p))
                surrogate = torch.min(ratio * advantages[i], torch.clamp(ratio, low, high) * advantages[i])
                loss, tokens = loss - (weights[i] * surrogate).sum(), tokens + len(response)
            optimizer.zero_grad()
            (loss / tokens).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
    return model.state_dict()


@pytest.mark.parametrize("ranks", [1, 2])
def test_static_is_plain_grpo_for_any_ranks_and_micro_batches(ranks, tmp_path):
    torchrun(Path(__file__), tmp_path, ranks=ranks)
    results = torch.load(tmp_path / "results.pt")
    assert len(results) == 4
    for (tied, optimizer, _), (weights, report) in results.items():
        expected = plain_grpo_update(tied, optimizer)
        before = fixed_model(tied).state_dict()
        assert all((expected[name] - before[name]).abs().max() > 2e-4 for name in expected)  # the update does something
        for name in expected:
            torch.testing.assert_close(weights[name], expected[name], atol=1e-5, rtol=0)
        assert 0 < report["clip_frac_high"] < 1 and 0 < report["clip_frac_low"] < 1


def updates_on_these_ranks(directory: Path) -> None:
    """Run by torchrun: one `update` of the fixed batch for a tied model with AdamW and an untied one with SGD, in
    micro-batches of one row and of all rows; rank 0 saves the weights."""
    from torch.distributed.device_mesh import init_device_mesh

    from trainer.distributed import end_distributed, init_distributed
    from trainer.model import load_model
    from trainer.policy import build_policy

    init_distributed(5)
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    mesh = init_device_mesh("cpu", (1, world_size), mesh_dim_names=("replicate", "shard"))
    rollouts, old_logp, advantages = fixed_batch()
    results = {}
    for tied in (True, False):
        model = directory / f"model-{tied}"
        if rank == 0:
            fixed_model(tied).save_pretrained(model)
        torch.distributed.barrier()
        optimizer = "adamw" if tied else "sgd"
        for micro_batch_tokens in (40, 10_000):
            policy = build_policy(load_model(model), mesh, temperature=1.0)
            cfg = tiny_config(schedule="static", micro_batch_tokens=micro_batch_tokens, **UPDATE)
            ones, weights = torch.ones(len(rollouts.sampler_logp)), torch.cat(loss_weights(tied))
            per_token = rollouts.per_token(advantages)
            batch = torch.cat(old_logp), per_token, ones.bool(), weights, 0 * ones, ones, per_token > 0
            batch = Batch(*batch, clipped=torch.zeros(len(ones), dtype=torch.int32))
            made = OPTIMIZERS[optimizer](policy.parameters())
            run = SimpleNamespace(cfg=cfg, policy=policy, optimizer=made, method=cfg.make_method())
            upper, lower = ((0.0, 0.2), (0.0, 0.2)) if tied else ((-0.25, 0.5), (-0.13, 0.3))
            report = update(run, rollouts, batch, 7, upper, lower)
            torch.distributed.all_reduce(batch.clipped)
            counted = 2 * int((weights != 0).sum())  # in two epochs
            for side, sign in (("high", 1), ("low", -1)):  # token by token as in the sums
                assert report[f"clip_frac_{side}"] * counted == pytest.approx((sign * batch.clipped).clamp(min=0).sum())
            results[tied, optimizer, micro_batch_tokens] = dict(policy.full_tensors()), report
    if rank == 0:
        torch.save(results, directory / "results.pt")
    end_distributed()


# ---------------------------------------------------------------------------------------------------------- one step


SPY = """
import sys, torch, grpo
from trainer.config import parse_config
from trainer.distributed import Phases, end_distributed, init_distributed

argv = "--preset tiny --sampler transformers --objective track --target 0:2,1:2 --schedule upper --prompts-per-step 8 "
argv += "--group-size 8 --epochs 4 --mini-batches 1 --train-regions E1,E2,E3 --temperature 2"  # hot: lengths differ
cfg = parse_config([*argv.split(), "--output", sys.argv[1] + "/run"])
phases = Phases(10)
run, _ = grpo.set_up(cfg, init_distributed(5), phases)
seen, update = {}, grpo.update

def spy(run, rollouts, batch, step, upper, lower):
    seen.update(rollouts=rollouts, batch=batch, upper=upper, lower=lower)
    return update(run, rollouts, batch, step, upper, lower)

grpo.update = spy
seen["line"] = grpo.training_step(run, 0)
torch.save(seen, sys.argv[1] + "/seen.pt")
end_distributed(run.sampler)
"""


def test_what_a_step_hands_to_the_update(tmp_path):
    """Looked at from outside `update`: thresholds, weights of tokens, and the entropy, which is a mean over tokens."""
    python("-c", SPY, tmp_path)
    seen = torch.load(tmp_path / "seen.pt", weights_only=False)
    batch, line = seen["batch"], seen["line"]
    assert (seen["upper"], seen["lower"]) == ((-0.25, 0.5), (0.0, 0.2)) == (line["upper"], line["lower"])
    assert line["controller"] == 1.0  # 4 ln 2 > 1: all the gain there is, upwards

    model = AutoModelForCausalLM.from_pretrained(tiny.ensure_model())
    rollouts, entropy = seen["rollouts"], []
    for prompt, response in zip(rollouts.prompts, rollouts.responses):
        with torch.no_grad():
            logits = model(torch.cat([prompt, response]).long()[None]).logits[0, len(prompt) - 1 : -1]
        entropy.append(torch.distributions.Categorical(logits=logits / 2).entropy())
    assert len({len(row) for row in entropy}) > 1  # so that a mean of the rows' means would be another number
    entropy = torch.cat(entropy)
    assert line["entropy"] == pytest.approx(entropy.mean().item(), abs=1e-5)

    expected, up = batch.old_logp > -entropy, batch.advantages > 0
    clear = ((batch.old_logp + entropy).abs() > 1e-4) & (batch.advantages != 0)  # not on a boundary
    want = torch.zeros(len(entropy))  # E1: 1 − u = 0; E4: not trained
    want[~expected & up] = want[expected & ~up] = 2  # E2 and E3: 1 + u
    assert torch.equal(batch.weights[clear], want[clear]) and len(want.unique()) == 2


# -------------------------------------------------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    """Four steps of the tiny preset on two ranks, with the sampler that every machine has."""
    directory = tmp_path_factory.mktemp("runs") / "id"
    done = torchrun(
        "grpo.py",
        *"--preset tiny --schedule id --total-steps 4 --sampler transformers".split(),
        *"--prompts-per-step 8 --group-size 8 --epochs 4 --mini-batches 1".split(),
        "--output",
        directory,
    )
    return directory, done


def test_a_run_leaves_what_it_promises(short_run):
    directory, done = short_run
    assert done.stdout.splitlines()[0].startswith("preset tiny on 2 CPU processes")
    assert "reward" in done.stdout and str(directory / "curves.png") in done.stdout
    assert json.loads((directory / "config.json").read_text())["schedule"] == "id"
    assert (directory / "curves.png").read_bytes().startswith(b"\x89PNG")
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    for line in lines:
        assert 0.1 < line["reward"] < 0.9 and 0.1 < line["entropy"] < 1.5 and line["grad_norm"] > 0
        clipped = line["clipped"]
        assert set(clipped) == {"clip_high_p", "clip_low_p", "clip_high_E2", "clip_low_E4"}
        assert all(0 <= value <= 1 for value in clipped.values())
        assert 0 <= line["clip_frac_high"] < 0.2 and 0 <= line["clip_frac_low"] < 0.2
        for key in ("regions_rule", "regions_exact", "predicted_entropy_change"):
            assert set(line[key]) == REGIONS
        assert 0.5 < sum(line["regions_rule"].values()) < 1 + 1e-6  # the rest has no advantage
        assert (
            line["predicted_entropy_change"]["E2"] >= 0 >= line["predicted_entropy_change"]["E4"]
        )  # exact for these two
        phases = "rollout reward gather sleep save old_stats update sync between".split()
        assert set(line["seconds"]) == {*phases, "step"} and line["memory"] is None  # no GPU
        assert line["importance_capped"] == 0
    tokens = [json.loads(line) for line in (directory / "tokens.jsonl").open()]
    for line, clipped in zip(lines, tokens, strict=True):  # counted token by token, as the sums of both ranks
        counted = 4 * line["n_tokens"]  # in four epochs
        assert clipped["above"]["times"] == round(line["clip_frac_high"] * counted)
        assert clipped["below"]["times"] == round(line["clip_frac_low"] * counted)
    samples = [json.loads(line) for line in (directory / "samples.jsonl").open()]
    assert [line["step"] for line in samples] == [0, 3] and all(line["responses"] for line in samples)
    assert [line["upper"] for line in lines][:3] == [[-0.25, 0.5], [-0.125, 0.35], [0.0, 0.2]]
    assert lines[3]["lower"] == pytest.approx([-0.065, 0.25])


def test_the_final_model_is_a_hugging_face_model_with_the_trained_weights(short_run):
    directory, _ = short_run
    model = AutoModelForCausalLM.from_pretrained(directory / "model")
    start = AutoModelForCausalLM.from_pretrained(tiny.ensure_model())
    tokenizer = AutoTokenizer.from_pretrained(directory / "model")
    assert len(tokenizer(tiny.BOX)["input_ids"]) == 1 and tokenizer.eos_token_id == model.generation_config.eos_token_id
    changes = [(a - b).abs().max().item() for a, b in zip(model.parameters(), start.parameters())]
    assert min(changes) > 1e-4


def test_the_same_command_gives_the_same_run(short_run, tmp_path):
    directory, _ = short_run
    torchrun(
        "grpo.py",
        *"--preset tiny --schedule id --total-steps 4 --sampler transformers".split(),
        *"--prompts-per-step 8 --group-size 8 --epochs 4 --mini-batches 1".split(),
        "--output",
        tmp_path / "again",
    )
    for a, b in zip(*(map(json.loads, (d / "metrics.jsonl").open()) for d in (directory, tmp_path / "again"))):
        del a["seconds"], b["seconds"]
        assert a == b


def test_the_papers_path_with_a_big_vocabulary_and_a_local_file(tmp_path):
    """The paper preset on a random Qwen2.5-shaped model (vocabulary 151,936), a JSONL data set, every sampler that is
    installed here, truncated responses masked and the region experiment's flag."""
    torch.manual_seed(0)
    size = SMALL | dict(vocab_size=151_936, intermediate_size=128, max_position_embeddings=512, dtype="bfloat16")
    model = Qwen2ForCausalLM(Qwen2Config(**size, tie_word_embeddings=False))
    model.to(torch.bfloat16).save_pretrained(tmp_path / "model")
    tiny.make_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "math.jsonl").write_text("".join(json.dumps(p) + "\n" for p in tiny.problems(16, seed=0)))
    torchrun(
        "grpo.py",
        *["--preset", "paper"],
        "--model",
        tmp_path / "model",
        "--data",
        tmp_path / "math.jsonl",
        *"--total-steps 2 --prompts-per-step 4 --group-size 2 --mini-batches 2 --max-prompt-tokens 64".split(),
        *"--max-response-tokens 24 --schedule od --train-regions E2,E3 --is-correction token".split(),
        *"--dynamic-sampling 2 --overlong-buffer 8".split(),
        "--output",
        tmp_path / "run",
    )
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").open()]
    assert len(lines) == 2 and lines[0]["entropy"] == pytest.approx(11.9, abs=0.2)  # ln 151,936 = 11.93: a random model
    assert lines[0]["draws"] == 2 and -1 <= lines[0]["overlong_penalty"] < -0.9  # it never is right, nor stops
    assert lines[0]["importance_weight"] == pytest.approx(1, abs=1e-3)
    assert lines[0]["schedule_state"] == {"raising": False, "h_init": lines[0]["entropy"]}
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "run/model").dtype == torch.bfloat16  # as it came


@pytest.mark.parametrize(
    "flags",
    [
        ("--objective", "track", "--target", "0:1,1:0.2"),
        ("--objective", "adaptive-bonus", "--target", "0:2,1:2"),
        ("--objective", "clip-cov", "--schedule", "od"),
    ],
    ids=["track", "adaptive-bonus", "clip-cov"],
)
def test_other_ways_to_steer_entropy(flags, tmp_path):
    torchrun(
        "grpo.py",
        *"--preset tiny --total-steps 3 --prompts-per-step 8 --group-size 8 --epochs 4 --mini-batches 1".split(),
        *["--sampler", "transformers"],
        *flags,
        "--output",
        tmp_path / "run",
    )
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").open()]
    assert all(line["grad_norm"] > 0 for line in lines)
    h = lines[0]["entropy"]
    if "track" in flags:
        assert [line["target"] for line in lines] == pytest.approx([h, h * (1 - 0.8 / 3), h * (1 - 1.6 / 3)])
        assert -1 <= lines[0]["controller"] < 0  # down
    elif "adaptive-bonus" in flags:
        assert [line["controller"] for line in lines] == pytest.approx([0.0, 0.005, 0.01])  # always below its target
    else:
        assert lines[0]["controller"] is None and lines[0]["target"] is None


# --------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--data", "missing.jsonl"], "missing.jsonl"),
        (["--model", "/no/such/model"], "/no/such/model"),
        (["--max-response-tokens", "300"], "256 positions"),
        (["--output", "."], "--output . exists"),
        (["--reward", "rewards:nothing"], "nothing"),
    ],
)
def test_a_bad_input_ends_the_run_before_it_starts(flags, message):
    command = [sys.executable, "grpo.py", "--preset", "tiny", *flags]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr and "Traceback" not in done.stderr


if __name__ == "__main__":
    updates_on_these_ranks(Path(sys.argv[1]))
