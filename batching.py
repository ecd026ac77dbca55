"""Rows of different lengths into micro-batches: sorted by length, under a token budget, the same number on every rank.

A row is one prompt with one response. Every rank holds the whole list of rows, so every rank can compute the same plan and take its
own part of it: no rank ever waits in a collective that another one skips.
"""

from typing import NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence

FILLER = -1  # in a plan: this rank has no row here, and runs a masked copy of a short one to keep step with the others


def plan_micro_batches(lengths: list[int], world_size: int, max_tokens: int) -> list[list[list[int]]]:
    """Deal rows to ranks and cut them into micro-batches: plan[m][rank] lists the row numbers of rank's m-th micro-batch.

    Rows sorted by length are dealt in rounds of `world_size`, so ranks get rows of nearly equal length, and a micro-batch is as many
    rounds as keep rows × longest row within `max_tokens`. Every row is in the plan once; every rank has len(plan) micro-batches of
    the same number of rows each, FILLERs included. Longest first: what does not fit in memory fails in the first micro-batch.
    Raises ValueError for a row longer than `max_tokens`.
    """
    if lengths and max(lengths) > max_tokens:
        raise ValueError(f"a row of {max(lengths)} tokens does not fit into micro-batches of {max_tokens}")
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    order += [FILLER] * (-len(order) % world_size)
    rounds = [order[i : i + world_size] for i in range(0, len(order), world_size)]
    plan, micro_batch, longest = [], [], 0
    for i, row_of_rank in enumerate(rounds):
        if micro_batch and (len(micro_batch) + 1) * longest > max_tokens:
            plan.append(micro_batch)
            micro_batch = []
        if not micro_batch:
            longest = lengths[row_of_rank[0]]
        # every other round is dealt backwards, or rank 0 would get the longer row each time
        micro_batch.append(row_of_rank if i % 2 == 0 else row_of_rank[::-1])
    if micro_batch:
        plan.append(micro_batch)
    return [[[r[rank] for r in micro_batch] for rank in range(world_size)] for micro_batch in plan]


class MicroBatch(NamedTuple):
    """R rows padded on the right to L tokens, and the N response tokens in them, flat, row after row."""

    input_ids: torch.Tensor  # [R, L] prompt, response, padding
    attention_mask: torch.Tensor  # [R, L] 1 where there is a token
    predicts: torch.Tensor  # bool [R, L], True at the N positions whose *next* token is a response token
    tokens: torch.Tensor  # [N] those response tokens, EOS included; padding never
    rows: list[int]  # the row each of the R is, FILLERs replaced
    response_mask: torch.Tensor  # bool [N], False for the tokens of fillers

    def to(self, device: torch.device) -> "MicroBatch":
        return self._replace(**{k: v.to(device) for k, v in self._asdict().items() if isinstance(v, torch.Tensor)})


def collate(prompts: list[torch.Tensor], responses: list[torch.Tensor], rows: list[int]) -> MicroBatch:
    """The micro-batch of `rows` (numbers into the lists of 1-D id tensors; FILLER allowed). No prompt or response may be empty."""
    real = [i != FILLER for i in rows]
    if not all(real):
        shortest = min(range(len(prompts)), key=lambda i: len(prompts[i]) + len(responses[i]))
        rows = [i if i != FILLER else shortest for i in rows]
    start = torch.tensor([len(prompts[i]) for i in rows])[:, None]
    end = start + torch.tensor([len(responses[i]) for i in rows])[:, None]
    input_ids = pad_sequence([torch.cat([prompts[i], responses[i]]) for i in rows], batch_first=True).long()
    position = torch.arange(input_ids.shape[1])
    return MicroBatch(
        input_ids=input_ids,
        attention_mask=(position < end).long(),
        predicts=(position >= start - 1) & (position < end - 1),
        tokens=torch.cat([responses[i] for i in rows]).long(),
        rows=rows,
        response_mask=torch.tensor(real).repeat_interleave((end - start).squeeze(1)),
    )
