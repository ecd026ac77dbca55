"""Micro-batch plans and padding: pytest tests/test_batching.py"""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.batching import FILLER, OVERHEAD_TOKENS, collate, micro_batches, plan_micro_batches
from trainer.rollout import Rollouts


@settings(deadline=None)  # a busy machine is not a failure
@given(
    lengths=st.lists(st.integers(1, 100), min_size=1, max_size=60),
    world_size=st.integers(1, 5),
    max_tokens=st.integers(100, 1000),
)
def test_plan_has_every_row_once_in_budget_and_in_step_on_all_ranks(lengths, world_size, max_tokens):
    plan = plan_micro_batches(lengths, world_size, max_tokens)
    rows = [row for micro_batch in plan for share in micro_batch for row in share if row != FILLER]
    assert sorted(rows) == list(range(len(lengths)))
    for micro_batch in plan:
        assert len(micro_batch) == world_size
        assert (
            len({len(share) for share in micro_batch}) == 1
        )  # the same rows per rank, so the same number of micro-batches
        longest = max(lengths[row] for share in micro_batch for row in share if row != FILLER)
        assert len(micro_batch[0]) * longest <= max_tokens
    assert sum(row == FILLER for mb in plan for share in mb for row in share) < world_size


@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 2000), min_size=1, max_size=9), max_tokens=st.integers(2000, 8000))
def test_no_other_cut_of_the_sorted_rows_is_cheaper(lengths, max_tokens):
    def cost(groups):
        tokens = [len(group) * max(group) for group in groups]
        return sum(tokens) + OVERHEAD_TOKENS * len(groups) if max(tokens) <= max_tokens else float("inf")

    ordered, n = sorted(lengths, reverse=True), len(lengths)
    every = []
    for cuts in itertools.product((False, True), repeat=n - 1):  # of all 2^(n − 1)
        edges = [0, *[i + 1 for i, cut in enumerate(cuts) if cut], n]
        every.append(cost([ordered[a:b] for a, b in itertools.pairwise(edges)]))
    plan = plan_micro_batches(lengths, 1, max_tokens)
    assert cost([[lengths[i] for i in micro_batch[0]] for micro_batch in plan]) == min(every)


def test_a_row_over_the_budget_is_refused():
    with pytest.raises(ValueError, match="prompt and response of 101 tokens"):
        plan_micro_batches([5, 101], 1, 100)


def test_collate_points_at_the_positions_before_the_response_tokens():
    prompts = [torch.tensor([1, 2]), torch.tensor([3])]
    responses = [torch.tensor([4, 5]), torch.tensor([6])]
    batch = collate(prompts, responses)
    assert batch.input_ids.tolist() == [[1, 2, 4, 5], [3, 6, 0, 0]]
    assert batch.predicts.int().tolist() == [[0, 1, 1, 0], [1, 0, 0, 0]]
    assert batch.tokens.tolist() == [4, 5, 6]
    # what a position predicts is the token after it
    predicted = batch.input_ids.roll(-1, dims=1)[batch.predicts]
    assert predicted.tolist() == batch.tokens.tolist()


@settings(deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 9)), min_size=1, max_size=12), ranks=st.integers(1, 4)
)
def test_every_token_of_the_chosen_responses_is_real_on_one_rank_once(lengths, ranks):
    """Over all ranks, each with its own number among the N; and a FILLER is a copy of the shortest."""
    vocabulary = itertools.count(1)
    prompts, responses = (
        [torch.tensor([next(vocabulary) for _ in range(pair[k])], dtype=torch.int32) for pair in lengths]
        for k in (0, 1)
    )
    everything, none = torch.cat(responses), torch.zeros(0)
    rollouts = Rollouts(prompts, responses, none, none, none)
    chosen = torch.arange(0, len(lengths), 2)
    seen, shapes = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.distributed.get_world_size", lambda: ranks)
        for rank in range(ranks):
            patch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
            mine = list(micro_batches(rollouts, chosen, 40, torch.device("cpu")))
            shapes.append([len(inputs.input_ids) for inputs, *_ in mine])
            for inputs, tokens, is_real in mine:
                assert torch.equal(everything[tokens], inputs.tokens.int())  # the numbers are those of the tokens
                seen += tokens[is_real].tolist()
                shortest = min(range(len(lengths)), key=lambda i: sum(lengths[i]))
                assert set(inputs.tokens[~is_real].tolist()) <= set(responses[shortest].tolist())
    wanted = [
        number
        for i, part in enumerate(torch.arange(len(everything)).split([len(r) for r in responses]))
        if i % 2 == 0
        for number in part.tolist()
    ]
    assert sorted(seen) == wanted
    assert len({tuple(shape) for shape in shapes}) == 1  # every rank calls every collective equally often
