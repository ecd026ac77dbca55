"""How the rows of a rollout batch are cut into micro-batches. A *row* is one response with its prompt. Every rank
computes the same plan, so that none waits in a collective that another one skips."""

from typing import NamedTuple

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

OVERHEAD_TOKENS = 256  # a micro-batch's fixed cost in tokens: one more is worth it if it saves as much padding
FILLER = -1  # in a plan: this rank has no row here, and runs a masked copy of a short one to keep step with the others


def plan_micro_batches(lengths: list[int], world_size: int, max_tokens: int) -> list[list[list[int]]]:
    """Deal rows to ranks and cut them into micro-batches: plan[m][rank] lists the rows of rank's m-th micro-batch.

    Rows sorted by length are dealt in rounds of `world_size`, so that ranks get rows of nearly equal length. The rounds
    are cut where the sum of rows × longest row, plus OVERHEAD_TOKENS for each micro-batch, is least, with rows ×
    longest row within `max_tokens`. Every row is in the plan once. Every rank has len(plan) micro-batches of the same
    number of rows each, FILLERs included. The longest come first: what does not fit in memory fails in the first
    micro-batch. Raises ValueError for a row longer than `max_tokens`.
    """
    if lengths and max(lengths) > max_tokens:
        raise ValueError(f"a row of {max(lengths)} tokens does not fit into micro-batches of {max_tokens}")
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    order += [FILLER] * (-len(order) % world_size)
    rounds = [order[i : i + world_size] for i in range(0, len(order), world_size)]
    longest = np.array([lengths[row_of_rank[0]] for row_of_rank in rounds])
    # cheapest[j] is the least cost of the first j rounds, and cut[j] the round at which their last micro-batch starts
    cheapest, cut = np.zeros(len(rounds) + 1), [0] * (len(rounds) + 1)
    for j in range(1, len(rounds) + 1):
        tokens = np.arange(j, 0, -1) * longest[:j]  # of a micro-batch that starts at round 0 … j − 1
        cost = np.where(tokens <= max_tokens, cheapest[:j] + tokens + OVERHEAD_TOKENS, np.inf)
        cut[j] = int(cost.argmin())
        cheapest[j] = cost[cut[j]]
    micro_batches, j = [], len(rounds)
    while j:
        # every other round is dealt backwards, or rank 0 would get the longer row each time
        dealt = [rounds[i] if i % 2 == 0 else rounds[i][::-1] for i in range(cut[j], j)]
        micro_batches.insert(0, [[row_of_rank[rank] for row_of_rank in dealt] for rank in range(world_size)])
        j = cut[j]
    return micro_batches


class MicroBatch(NamedTuple):
    """B rows padded on the right to L tokens, and the n response tokens in them, row after row."""

    input_ids: torch.Tensor  # [B, L] prompt, response, padding
    predicts: torch.Tensor  # bool [B, L], True at the n positions whose *next* token is a response token
    tokens: torch.Tensor  # [n] those response tokens, EOS included; padding never
    rows: list[int]  # the row number of each of the B, FILLERs replaced
    response_mask: torch.Tensor  # bool [n], False for the tokens of FILLERs

    def to(self, device: torch.device) -> "MicroBatch":
        return self._replace(**{k: v.to(device) for k, v in self._asdict().items() if isinstance(v, torch.Tensor)})


def collate(prompts: list[torch.Tensor], responses: list[torch.Tensor], rows: list[int]) -> MicroBatch:
    """The micro-batch of `rows`: numbers into the lists of ids, none of which may be empty, or FILLER."""
    real = [i != FILLER for i in rows]
    if not all(real):
        shortest = min(range(len(prompts)), key=lambda i: len(prompts[i]) + len(responses[i]))
        rows = [i if i != FILLER else shortest for i in rows]
    start = torch.tensor([len(prompts[i]) for i in rows])[:, None]  # [B, 1]
    end = start + torch.tensor([len(responses[i]) for i in rows])[:, None]
    input_ids = pad_sequence([torch.cat([prompts[i], responses[i]]) for i in rows], batch_first=True).long()
    position = torch.arange(input_ids.shape[1])
    return MicroBatch(
        input_ids=input_ids,
        predicts=(position >= start - 1) & (position < end - 1),
        tokens=torch.cat([responses[i] for i in rows]).long(),
        rows=rows,
        response_mask=torch.tensor(real).repeat_interleave((end - start).squeeze(1)),
    )
