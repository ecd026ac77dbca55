"""How the responses of a rollout batch are cut into micro-batches. A length counts a response with its prompt. Every
rank computes the same plan, so that none waits in a collective that another one skips."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.utils.rnn import pad_sequence

from trainer.rollout import Rollouts

OVERHEAD_TOKENS = 256  # a micro-batch's fixed cost in tokens: one more is worth it if it saves as much padding
FILLER = -1  # in a plan: this rank has no response here, and runs a masked copy of the shortest to keep in step


def plan_micro_batches(lengths: list[int], world_size: int, max_tokens: int) -> list[list[list[int]]]:
    """Deal responses to ranks and cut them into micro-batches: plan[m][rank] lists those of rank's m-th micro-batch.

    Sorted by length, they are dealt in rounds of `world_size`, so that ranks get responses of nearly equal length. The
    rounds are cut where the sum of responses × longest, plus OVERHEAD_TOKENS for each micro-batch, is least, with
    responses × longest within `max_tokens`. Every response is in the plan once. Every rank has len(plan) micro-batches
    of the same number of responses each, FILLERs included. The longest come first: what does not fit in memory fails in
    the first micro-batch. Raises ValueError for a response that is longer than `max_tokens`.
    """
    if lengths and max(lengths) > max_tokens:
        raise ValueError(f"prompt and response of {max(lengths)} tokens do not fit into micro-batches of {max_tokens}")
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    order += [FILLER] * (-len(order) % world_size)
    rounds = [order[i : i + world_size] for i in range(0, len(order), world_size)]
    longest = np.array([lengths[of_rank[0]] for of_rank in rounds])
    # cheapest[j] is the least cost of the first j rounds, and cut[j] the round at which their last micro-batch starts
    cheapest, cut = np.zeros(len(rounds) + 1), [0] * (len(rounds) + 1)
    for j in range(1, len(rounds) + 1):
        tokens = np.arange(j, 0, -1) * longest[:j]  # of a micro-batch that starts at round 0 … j − 1
        cost = np.where(tokens <= max_tokens, cheapest[:j] + tokens + OVERHEAD_TOKENS, np.inf)
        cut[j] = int(cost.argmin())
        cheapest[j] = cost[cut[j]]
    micro_batches, j = [], len(rounds)
    while j:
        # every other round is dealt backwards, or rank 0 would get the longer one each time
        dealt = [rounds[i] if i % 2 == 0 else rounds[i][::-1] for i in range(cut[j], j)]
        micro_batches.insert(0, [[of_rank[rank] for of_rank in dealt] for rank in range(world_size)])
        j = cut[j]
    return micro_batches


class MicroBatch(NamedTuple):
    """Some responses with their prompts, padded on the right to `width` tokens, and the n response tokens in them."""

    input_ids: torch.Tensor  # int64 [batch, width] prompt, response, padding
    predicts: torch.Tensor  # bool [batch, width], True at the n positions whose *next* token is a response token
    tokens: torch.Tensor  # int64 [n] those response tokens, EOS included; padding never

    def to(self, device) -> "MicroBatch":
        return MicroBatch(*(part.to(device) for part in self))


def micro_batches(rollouts: Rollouts, chosen: torch.Tensor, max_tokens: int, device) -> Iterator[tuple]:
    """(inputs, tokens, is_real) of each of this rank's micro-batches of the responses whose numbers are `chosen`.

    `inputs` is a MicroBatch. `tokens`, int64 [n], are the numbers of its tokens among the N of the rollout batch.
    `is_real`, bool [n], is False for the tokens of a FILLER. Every rank gets the same number of micro-batches."""
    lengths, chosen = rollouts.total_lengths, chosen.tolist()
    end = rollouts.lengths.cumsum(0).tolist()
    shortest = min(range(len(lengths)), key=lengths.__getitem__)
    for shares in plan_micro_batches([lengths[i] for i in chosen], dist.get_world_size(), max_tokens):
        mine = [chosen[i] if i != FILLER else FILLER for i in shares[dist.get_rank()]]
        numbers = [i if i != FILLER else shortest for i in mine]
        tokens = torch.cat([torch.arange(end[i] - len(rollouts.responses[i]), end[i]) for i in numbers])
        is_real = torch.cat([torch.full((len(rollouts.responses[n]),), i != FILLER) for i, n in zip(mine, numbers)])
        inputs = collate([rollouts.prompts[i] for i in numbers], [rollouts.responses[i] for i in numbers])
        yield inputs.to(device), tokens.to(device), is_real.to(device)


def collate(prompts: list[torch.Tensor], responses: list[torch.Tensor]) -> MicroBatch:
    """Pads prompt i with response i, for all i. None may be empty."""
    start = torch.tensor([len(prompt) for prompt in prompts])[:, None]  # [batch, 1]
    end = start + torch.tensor([len(response) for response in responses])[:, None]
    input_ids = pad_sequence([torch.cat(pair) for pair in zip(prompts, responses)], batch_first=True).long()
    position = torch.arange(input_ids.shape[1])
    predicts = (position >= start - 1) & (position < end - 1)
    return MicroBatch(input_ids, predicts, torch.cat(responses).long())
