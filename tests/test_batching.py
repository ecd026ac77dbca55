"""Micro-batch plans and padding: pytest tests/test_batching.py"""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.batching import FILLER, OVERHEAD_TOKENS, collate, plan_micro_batches


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
    with pytest.raises(ValueError, match="row of 101 tokens"):
        plan_micro_batches([5, 101], 1, 100)


def test_collate_points_at_the_positions_before_the_response_tokens():
    prompts = [torch.tensor([1, 2]), torch.tensor([3])]
    responses = [torch.tensor([4, 5]), torch.tensor([6])]
    batch = collate(prompts, responses, [0, 1])
    assert batch.input_ids.tolist() == [[1, 2, 4, 5], [3, 6, 0, 0]]
    assert batch.predicts.int().tolist() == [[0, 1, 1, 0], [1, 0, 0, 0]]
    assert batch.tokens.tolist() == [4, 5, 6]
    assert batch.response_mask.tolist() == [True, True, True]
    # what a position predicts is the token after it
    predicted = batch.input_ids.roll(-1, dims=1)[batch.predicts]
    assert predicted.tolist() == batch.tokens.tolist()


def test_a_filler_is_a_masked_copy_of_the_shortest_row():
    batch = collate([torch.tensor([1, 2]), torch.tensor([3])], [torch.tensor([4, 5]), torch.tensor([6])], [0, FILLER])
    assert batch.rows == [0, 1]
    assert batch.tokens.tolist() == [4, 5, 6]
    assert batch.response_mask.tolist() == [True, True, False]
