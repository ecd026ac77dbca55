"""One-token steps: the exact sign is exact where a state's logits are its own: pytest tests/test_onestep.py"""

import pytest
import torch
from test_grpo import fixed_model

from clipping import entropy_change
from logprobs import token_stats
from study.onestep import RELATIVE_STEP, entropy_of, softmax_policy, steps, table, transformer
from tasks.tiny import make_tokenizer

EXPECTED = torch.tensor([-1.0, 1.0, 1.0, -1.0])  # E1 … E4


def test_own_logits_obey_the_exact_boundary_always_and_the_rule_in_e2_and_e4():
    region, exact, own, everything = softmax_policy("tabular", seed=1, n=128).T
    assert (own.sign() == exact).all()
    assert (own.sign() == EXPECTED[region.long()])[(region == 1) | (region == 3)].all()
    assert (own.sign() != EXPECTED[region.long()]).any()  # E1, E3: where 0 < f(a) < B
    torch.testing.assert_close(own / everything, torch.full_like(own, 128.0))  # no other state moved


def test_the_change_is_first_order_and_the_parameters_come_back():
    torch.manual_seed(0)
    logits = torch.randn(6, 9, dtype=torch.float64).requires_grad_()
    saved, tokens = logits.detach().clone(), torch.arange(6)
    rows = steps(lambda: logits, [logits], tokens, 6)
    torch.testing.assert_close(logits.detach(), saved, atol=1e-12, rtol=0)
    stats = token_stats(logits.detach(), tokens)
    predicted = entropy_change(*stats, torch.ones(6, dtype=torch.float64))
    # a step of length η ‖logits‖ along the token's gradient, so dH = η ‖logits‖ ⟨∇L, ∇H⟩ / ‖∇L‖; ∇L = Â (1[x = a] − p)
    gradient = (torch.nn.functional.one_hot(tokens, 9) - saved.softmax(-1)).norm(dim=-1)
    slopes = (RELATIVE_STEP * saved.norm() * predicted / gradient).abs().sort().values
    torch.testing.assert_close(rows[:, 2].abs().double().sort().values, slopes, rtol=1e-3, atol=1e-9)


def test_entropy_of_a_uniform_and_of_a_certain_state():
    assert entropy_of(torch.zeros(4)).item() == pytest.approx(torch.tensor(4.0).log().item())
    assert entropy_of(torch.tensor([0.0, 200.0])).item() == pytest.approx(0.0, abs=1e-6)


def test_a_transformer_runs_and_the_table_counts_all_tokens(tmp_path, capsys):
    tokenizer = make_tokenizer()
    model = fixed_model(tied=True)
    model.resize_token_embeddings(len(tokenizer))
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = (
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
    )
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    rows = transformer(tmp_path, ["12", "34"], 4, seed=0, n=6)
    assert rows.shape == (6, 4) and (rows[:, 2] != 0).all()
    table("policy", rows)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("| policy | all | 6 |")
    assert sum(int(line.split("|")[3]) for line in lines[:-1]) == 6
