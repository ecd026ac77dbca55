"""GRPO with flexible entropy control (arXiv 2602.09782): the training loop.

    ./torchrun.sh --schedule id                          # sets the machine up; all GPUs, or 2 CPU ranks
    torchrun --nproc_per_node 8 grpo.py --schedule id    # the paper's model and data, on 8 GPUs
    python grpo.py --preset tiny --schedule static       # one process, a laptop, minutes

One step k of T, which is `training_step` below:

    1  take prompts, sample a group of G responses to each             rollout.py, sample.py
    2  reward each response 0 or 1                                     rewards.py
    3  advantages: Â = (R − mean) / std within each group              `group_advantages`
    4  ln π_old, entropy H and B of every response token               policy.py, logprobs.py
    5  the schedule turns (k, H) into two clip thresholds ε(p)         schedules.py, controllers.py
    6  several optimizer steps on the clipped surrogate                `update`, clipping.py, objectives.py
    7  hand the new weights to the sampler, log                        sample.py, metrics.py

Compared with PPO there is no critic, and compared with GRPO no KL term. The loss is DAPO's mean over tokens, and the
clip thresholds may move. On GPUs each token's loss is also weighted by min(π_old / π_sampler, 2), see
`--is-correction`. Every rank keeps the whole rollout batch (token ids and a few numbers per token). So mini-batches,
their plan over ranks and all rollout metrics are computed alike everywhere: given the same rollouts, an update does not
depend on the number of ranks or on the size of a micro-batch. The samples do depend on the number of ranks.

Shapes: [R] has one element per response, or row, of the batch, [N] one per response token, [n] one per response token
of a micro-batch. B is explained in clipping.py. Where a docstring says "a collective", every rank has to call it.
"""

import math
import signal
import sys
import time
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record
from transformers import set_seed
from transformers.utils import logging as transformers_logging

from clipping import Line, region_masks
from logprobs import TokenStats, token_logp_and_entropy
from objectives import NEEDS_ENTROPY, prepare_objective, token_loss
from rewards import RewardError
from trainer.batching import FILLER, collate, plan_micro_batches
from trainer.config import Config, parse_config
from trainer.distributed import Phases, StopRequest, gather, init_distributed, print0, seed_of
from trainer.logger import Logger
from trainer.metrics import SUMS, clip_metrics, clip_sums, region_metrics
from trainer.policy import Policy, full_tensor, old_stats
from trainer.rollout import Rollouts, collect, overlong_penalty, sampler_mismatch
from trainer.run import Run, finish, not_finite, save_evidence, set_up, stop_early, trainer_state


def training_step(run: Run, step: int) -> dict:
    """The seven steps listed above, for one rollout batch. Returns the step's line of metrics.jsonl. A collective."""
    cfg, policy, phases = run.cfg, run.policy, run.phases

    # 1, 2: prompts -> responses -> rewards. Each rank takes its share of the prompts, then every rank gets everything.
    rollouts, rollout_report = collect(run, step)
    run.sampler.sleep()
    with phases("save"):
        run.checkpointer.finish()  # it was written while this step sampled; it must be whole before the weights change

    # 3: advantages
    penalties = overlong_penalty(rollouts.lengths, cfg.max_response_tokens, cfg.overlong_buffer)  # [R]
    advantages = rollouts.per_token(group_advantages(rollouts.rewards + penalties, cfg.group_size))  # [N]

    # 4: ln π_old, H and B under the current weights
    with phases("old_stats"):
        old = old_stats(policy, rollouts, cfg.micro_batch_tokens)  # [N] each
    run.evidence = dict(rollouts=rollouts, old=old, advantages=advantages)
    if bad := not_finite(advantages=advantages, sampler_logp=rollouts.sampler_logp, **old._asdict()):
        raise FloatingPointError(f"not finite: {bad}")  # alike on every rank
    mismatch = sampler_mismatch(old.logp, rollouts.sampler_logp, policy.compute_dtype if cfg.check_sync else None)

    # 5: the two thresholds of this step, and what the controller says, if the objective has one
    entropy = old.entropy.double().mean().item()  # nats per token
    upper, lower = run.schedule(step, entropy)
    control = run.controller(step, entropy) if run.controller else cfg.entropy_coef  # for entropy-bonus

    # 6: optimizer steps on the clipped surrogate
    for group in run.optimizer.param_groups:
        group["lr"] = cfg.lr * min(1.0, (step + 1) / max(1, cfg.lr_warmup_steps))
    batch = make_batch(cfg, rollouts, old, advantages, control, step)
    with phases("update"):
        update_report = update(policy, run.optimizer, batch, cfg, step, upper=upper, lower=lower)

    # 7: the new weights to the sampler
    with phases("sync"):
        run.sampler.sync(policy.full_tensors())
    return {
        "step": step,
        "entropy": entropy,
        **rollout_report,
        **update_report,
        "overlong_penalty": penalties.mean().item(),
        "sampler_mismatch": mismatch,
        "importance_weight": batch.importance.mean().item(),
        "lr": run.optimizer.param_groups[0]["lr"],
        "upper": upper,
        "lower": lower,
        "target": run.controller.target(step, run.controller.h_init) if run.controller else None,
        "controller": control if run.controller else None,
        "schedule_state": run.schedule.state_dict(),
        **region_metrics(old, advantages),
        "n_tokens": len(advantages),
    }


def group_advantages(rewards: torch.Tensor, group_size: int) -> torch.Tensor:
    """Â_i = (R_i − mean) / (std + 1e-6) within groups of `group_size` neighbours, std unbiased; [R] -> [R]. A group
    whose rewards are all equal gets exactly 0: it does not say which response is better."""
    groups = rewards.view(-1, group_size)
    advantages = (groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-6)
    equal = (groups == groups[:, :1]).all(1, keepdim=True)
    return advantages.masked_fill(equal, 0.0).flatten()


@dataclass
class Batch:
    """What `update` needs of a rollout batch. The tensors are [N], row after row."""

    rollouts: Rollouts
    old_logp: torch.Tensor
    advantages: torch.Tensor
    loss_mask: torch.Tensor  # bool, the tokens that the loss is averaged over
    weights: torch.Tensor  # each multiplies a token's loss; a token of weight 0 is not trained, nor counted as clipped
    coef: torch.Tensor  # see `objectives.prepare_objective`
    importance: torch.Tensor  # the importance weights, which are contained in `weights`
    surprising: torch.Tensor  # bool, the tokens of E2 and E4

    def take(self, here: torch.Tensor, device) -> list[torch.Tensor]:
        """(old_logp, advantages, weights, coef, loss_mask, surprising) of the tokens whose numbers are in `here`."""
        columns = (self.old_logp, self.advantages, self.weights, self.coef, self.loss_mask, self.surprising)
        return [column[here].to(device) for column in columns]


def make_batch(cfg: Config, rollouts: Rollouts, old: TokenStats, advantages, control: float, step: int) -> Batch:
    """Everything about this step's tokens that does not change while the policy is updated."""
    loss_mask = rollouts.per_token(rollouts.finished | (not cfg.mask_truncated))
    generator = torch.Generator().manual_seed(seed_of(cfg.seed, step, "objective"))
    weights, coef = prepare_objective(cfg.objective, old, advantages, loss_mask, control, generator)
    importance = torch.ones_like(old.logp)
    if cfg.is_correction == "token":  # the sampler rounds in another way (bf16, other kernels)
        importance = (old.logp - rollouts.sampler_logp).exp().clamp(max=cfg.is_cap)  # min(π_old / π_sampler, cap)
    masks = region_masks(old.logp, old.entropy, advantages)  # [4, N]
    if regions := cfg.trained_regions():
        weights = weights * masks[regions].any(0)
    surprising = masks[1] | masks[3]
    return Batch(rollouts, old.logp, advantages, loss_mask, weights * importance, coef, importance, surprising)


def update(policy: Policy, optimizer, batch: Batch, cfg: Config, step: int, *, upper: Line, lower: Line) -> dict:
    """`cfg.epochs` passes over the batch in `cfg.mini_batches` optimizer steps each. The loss is a token mean: the sum
    over a mini-batch's tokens on all ranks, divided once by their number, those of weight 0 included. Returns clip
    fractions and the like, over all optimizer steps and ranks. A gradient that is not finite never reaches the weights:
    it raises FloatingPointError on every rank. A collective."""
    rank, world_size, device, rollouts = dist.get_rank(), dist.get_world_size(), policy.lm.device, batch.rollouts
    totals, grad_norms = torch.zeros(len(SUMS), dtype=torch.float64, device=device), []
    places = torch.arange(len(batch.old_logp)).split(rollouts.lengths.tolist())  # of each row's tokens among the N
    row_tokens, needs_entropy = rollouts.row_tokens, cfg.objective in NEEDS_ENTROPY

    for epoch in range(cfg.epochs):
        shuffle = torch.Generator().manual_seed(seed_of(cfg.seed, step, "epoch", epoch))
        for mini_batch in torch.randperm(len(rollouts.rewards), generator=shuffle).chunk(cfg.mini_batches):
            rows = mini_batch.tolist()
            n_tokens = max(1, int(batch.loss_mask[torch.cat([places[i] for i in rows])].sum()))  # of all ranks
            for shares in plan_micro_batches([row_tokens[i] for i in rows], world_size, cfg.micro_batch_tokens):
                mine = [rows[i] if i != FILLER else FILLER for i in shares[rank]]
                inputs = collate(rollouts.prompts, rollouts.responses, mine).to(device)
                here = torch.cat([places[i] for i in inputs.rows])  # [n], the tokens of this micro-batch
                old_logp, advantages, weights, coef, counts, surprising = batch.take(here, device)
                counts &= inputs.response_mask & (weights != 0)  # [n], as all of them

                logp, entropy = policy(inputs, token_logp_and_entropy) if needs_entropy else (policy(inputs), None)
                # for the objective grpo this is `clipping.clipped_surrogate`
                loss, side = token_loss(cfg.objective, old_logp, logp, advantages, counts, upper, lower, coef, entropy)
                loss = (loss * weights).sum() / n_tokens
                (loss * world_size).backward()  # FSDP averages gradients over ranks; this makes it a sum
                totals += clip_sums(old_logp, logp, counts, side, surprising)

            norm = full_tensor(torch.nn.utils.clip_grad_norm_(policy.parameters(), cfg.max_grad_norm)).item()
            if not math.isfinite(norm):  # the same number on every rank
                bad = gather([f"rank {rank}: {not_finite(logp=logp, loss=loss) or 'nothing'}"])
                raise FloatingPointError(f"gradient norm {norm}; not finite in the last micro-batch: {'; '.join(bad)}")
            grad_norms.append(norm)
            optimizer.step()
            optimizer.zero_grad()

    dist.all_reduce(totals)  # sums and counts together, divided once
    return {**clip_metrics(totals), "grad_norm": sum(grad_norms) / len(grad_norms)}


def train(cfg: Config, device: torch.device, phases: Phases) -> None:
    try:
        run, first_step = set_up(cfg, device, phases)
        logger = Logger(cfg, run.directory, first_step)
    except ValueError as error:  # a user's mistake: one line from one rank
        print0(f"grpo.py: error: {error}", file=sys.stderr)
        sys.exit(2)
    stop = StopRequest()  # until here a signal ends the process at once: there was nothing to lose

    for step in range(first_step, cfg.total_steps):
        start = time.perf_counter()
        phases.step, phases.seconds = step, {}
        set_seed(seed_of(cfg.seed, "global", step, dist.get_rank()))  # for whatever draws from the global generators
        try:
            line = training_step(run, step)
        except RewardError as error:
            stop_early(run, logger, step, f"grpo.py: error: {error}; stopped", 2)
        except FloatingPointError as error:  # raised alike on every rank
            raise FloatingPointError(f"{error}; {save_evidence(run, step)}") from None
        logger.log(line | {"seconds": {**phases.seconds, "step": time.perf_counter() - start}})

        signal_seen = stop.agreed()
        if signal_seen or (step + 1) % cfg.save_every == 0 or step + 1 == cfg.total_steps:
            with phases("save"):
                run.checkpointer.begin(step + 1, trainer_state(run), obstacle=logger.flush())
        if signal_seen and step + 1 < cfg.total_steps:
            stop_early(run, logger, step + 1, f"stopped by {signal.Signals(signal_seen).name}", 128 + signal_seen)
    finish(run, logger)


@record  # torchrun shows the first rank's exception last
def main(argv: list[str] | None = None) -> None:
    cfg = parse_config(argv)
    transformers_logging.disable_progress_bar()
    phases = Phases(cfg.timeout_minutes)
    # a collective may take a minute longer than a phase, so that the phase that hangs is named first
    device = init_distributed(cfg.timeout_minutes + 1)
    where = f"{dist.get_world_size()} {'GPUs' if device.type == 'cuda' else 'CPU processes'}"
    print0(f"preset {cfg.preset} on {where}: schedule {cfg.schedule}, objective {cfg.objective}")
    try:
        train(cfg, device, phases)
    except KeyboardInterrupt:
        print0(f"interrupted in {phases.where}")
        sys.exit(130)
    except Exception as error:
        if isinstance(error, RuntimeError):
            time.sleep(5)  # perhaps a peer's death is felt here: torchrun should see that one first, and name it
        error.add_note(f"({phases.where})")
        raise


if __name__ == "__main__":
    main()
