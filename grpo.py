"""GRPO with flexible entropy control (arXiv 2602.09782): the training loop.

    ./torchrun.sh --schedule id                          # sets the machine up; all GPUs, or 2 CPU ranks
    torchrun --nproc_per_node 8 grpo.py --schedule id    # the paper's model and data, on 8 GPUs
    python grpo.py --preset tiny --schedule static       # one process, a laptop, minutes

One step k of T, which is `training_step` below:

    1  take prompts, sample a group of G responses to each             trainer/rollout.py, sample.py
    2  reward each response 0 or 1                                     rewards.py
    3  advantages: Â = (R − mean) / std within each group              `group_advantages`
    4  ln π_old, entropy H and B of every response token               trainer/policy.py, logprobs.py
    5  the schedule turns (k, H) into two clip thresholds ε(p)         schedules.py, methods/
    6  several optimizer steps on the clipped surrogate                `update`, clipping.py
    7  hand the new weights to the sampler, log                        sample.py, trainer/logger.py

Compared with PPO there is no critic, and compared with GRPO no KL term. The loss is DAPO's mean over tokens, and the
clip thresholds may move. On GPUs each token's loss is also weighted by min(π_old / π_sampler, 2), see
`--is-correction`. Every rank keeps the whole rollout batch (token ids and a few numbers per token). So mini-batches,
their plan over ranks and all rollout metrics are computed alike everywhere: given the same rollouts, an update does not
depend on the number of ranks or on the size of a micro-batch. The samples do depend on the number of ranks.

Shapes: [R] has one element per response of the rollout batch, [N] one per response token, [n] one per response token
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
from logprobs import token_logp_and_entropy
from methods import Method, Tokens
from rewards import RewardError
from trainer.batching import micro_batches
from trainer.config import Config, parse_config
from trainer.distributed import Phases, StopRequest, gather, init_distributed, print0, refuse, seed_of, steady_streams
from trainer.logger import Logger
from trainer.metrics import UpdateSums, entropy_metrics, region_metrics
from trainer.policy import full_tensor, old_stats
from trainer.rollout import Rollouts, collect, overlong_penalty, sampler_mismatch
from trainer.run import Run, finish, not_finite, save_evidence, set_up, stop_early, trainer_state
from trainer.tokens import clipped_tokens

IS_CAP = 2.0  # the largest importance weight


def training_step(run: Run, step: int) -> dict:
    """The seven steps listed above, for one rollout batch. Returns the step's line of metrics.jsonl. A collective."""
    cfg, policy, phases = run.cfg, run.policy, run.phases

    # 1, 2: prompts -> responses -> rewards. Each rank takes its share of the prompts, then every rank gets everything.
    rollouts, rollout_report, run.draws = collect(cfg, run.environment, run.sampler, phases, step, run.draws)
    with phases("sleep"):
        run.sampler.sleep()
    with phases("save"):
        run.checkpointer.finish()  # it was written while this step sampled; it must be whole before the weights change

    # 3: advantages
    penalties = overlong_penalty(rollouts.lengths, cfg.max_response_tokens, cfg.overlong_buffer)  # [R]
    advantages = group_advantages(rollouts.rewards + penalties, cfg.group_size)  # [R]

    # 4: ln π_old, H and B under the current weights
    with phases("old_stats"):
        old = old_stats(policy, rollouts, cfg.micro_batch_tokens)  # [N] each
    columns = advantages, rollouts.in_loss, torch.arange(len(advantages))
    advantages, in_loss, response = (rollouts.per_token(column).to(old.logp.device) for column in columns)  # [N] each
    sampler_logp = rollouts.sampler_logp.to(old.logp.device)
    run.evidence = dict(rollouts=rollouts, old=old, advantages=advantages)
    if bad := not_finite(advantages=advantages, sampler_logp=sampler_logp, **old._asdict()):
        raise FloatingPointError(f"not finite: {bad}")  # alike on every rank
    mismatch = sampler_mismatch(old.logp, sampler_logp, policy.compute_dtype if cfg.check_sync else None)
    regions = region_masks(old.logp, old.entropy, advantages)  # [4, N]

    # 5: the two thresholds of this step, and what the method makes of the tokens
    entropy = old.entropy.double().mean().item()  # nats per token
    upper, lower = run.schedule(step, entropy)
    run.method.observe(step, entropy)
    tokens = Tokens(old.logp, old.entropy, advantages, in_loss, response, regions)
    batch = make_batch(cfg, run.method, tokens, sampler_logp, step)

    # 6: optimizer steps on the clipped surrogate
    lr = cfg.lr * min(1.0, (step + 1) / max(1, cfg.lr_warmup_steps))
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    with phases("update"):
        update_report = update(run, rollouts, batch, step, upper, lower)

    # 7: the new weights to the sampler
    with phases("sync"):
        run.sampler.sync(policy.full_tensors())
    line = {"step": step, "entropy": entropy, "upper": upper, "lower": lower, "sampler_mismatch": mismatch}
    line |= {"lr": lr, "n_tokens": len(advantages), "overlong_penalty": penalties.mean().item()}
    capped = (batch.importance == IS_CAP).double().mean().item()
    line |= {"importance_weight": batch.importance.mean().item(), "importance_capped": capped}
    line |= {"schedule_state": run.schedule.state_dict()} | entropy_metrics(old.entropy, rollouts.lengths)
    line |= rollout_report | update_report | run.method.report(step) | region_metrics(old, advantages, regions)
    return line | clipped_tokens(cfg, step, rollouts, tokens, batch.clipped, run.environment.tokenizer)


def group_advantages(rewards: torch.Tensor, group_size: int) -> torch.Tensor:
    """Â_i = (R_i − mean) / (std + 1e-6) within groups of `group_size` neighbours, std unbiased; [R] -> [R]. A group
    whose rewards are all equal gets exactly 0: it does not say which response is better."""
    groups = rewards.view(-1, group_size)
    advantages = (groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-6)
    equal = (groups == groups[:, :1]).all(1, keepdim=True)
    return advantages.masked_fill(equal, 0.0).flatten()


@dataclass
class Batch:
    """What `update` needs of the tokens of a rollout batch, [N] each, on the policy's device."""

    old_logp: torch.Tensor
    advantages: torch.Tensor
    in_loss: torch.Tensor  # bool, the tokens that the loss is averaged over
    weights: torch.Tensor  # each multiplies a token's loss; a token of weight 0 is not trained, nor counted as clipped
    marks: torch.Tensor  # see `methods.Method.marks`
    importance: torch.Tensor  # the importance weights, which are contained in `weights`
    surprising: torch.Tensor  # bool, the tokens of E2 and E4
    clipped: torch.Tensor  # int32, how often `update` has clipped a token on this rank, negative where below

    def __getitem__(self, tokens: torch.Tensor) -> "Batch":
        """Those of some tokens, by their numbers."""
        return Batch(*(column[tokens] for column in vars(self).values()))


def make_batch(cfg: Config, method: Method, tokens: Tokens, sampler_logp: torch.Tensor, step: int) -> Batch:
    """Everything about this step's tokens that does not change while the policy is updated."""
    weights = method.weights(tokens, torch.Generator().manual_seed(seed_of(cfg.seed, step, "objective")))
    importance = torch.ones_like(tokens.logp)
    if cfg.is_correction == "token":  # the sampler rounds in another way (bf16, other kernels)
        importance = (tokens.logp - sampler_logp).exp().clamp(max=IS_CAP)  # min(π_old / π_sampler, cap)
    if trained := cfg.trained_regions():
        weights = weights * tokens.regions[trained].any(0)
    given = dict(old_logp=tokens.logp, advantages=tokens.advantages, in_loss=tokens.in_loss)
    counts = dict(surprising=tokens.regions[1] | tokens.regions[3], clipped=torch.zeros_like(tokens.logp).int())
    return Batch(**given, **counts, weights=weights * importance, marks=method.marks(tokens), importance=importance)


def update(run: Run, rollouts: Rollouts, batch: Batch, step: int, upper: Line, lower: Line) -> dict:
    """`cfg.epochs` passes over the batch in `cfg.mini_batches` optimizer steps each. The loss is a token mean: the sum
    over a mini-batch's tokens on all ranks, divided once by their number, those of weight 0 included. Returns clip
    fractions and the like, over all optimizer steps and ranks. A gradient that is not finite never reaches the weights:
    it raises FloatingPointError on every rank. A collective."""
    cfg, policy, method, world_size = run.cfg, run.policy, run.method, dist.get_world_size()
    sums, norms, loss_tokens = UpdateSums(), [], rollouts.lengths * rollouts.in_loss  # [R]
    for epoch in range(cfg.epochs):
        shuffle = torch.Generator().manual_seed(seed_of(cfg.seed, step, "epoch", epoch))
        for chosen in torch.randperm(len(loss_tokens), generator=shuffle).chunk(cfg.mini_batches):
            n_tokens = max(1, int(loss_tokens[chosen].sum()))  # of all ranks
            for inputs, tokens, is_real in micro_batches(rollouts, chosen, cfg.micro_batch_tokens, policy.lm.device):
                this = batch[tokens]  # [n] each
                trained = this.in_loss & is_real & (this.weights != 0)
                found = policy(inputs, token_logp_and_entropy) if method.needs_entropy else (policy(inputs), None)
                logp, entropy = found
                args = this.old_logp, logp, this.advantages, trained, upper, lower
                loss, side = method.loss(*args, this.marks, entropy)  # for grpo it is `clipping.clipped_surrogate`
                loss = (loss * this.weights).sum() / n_tokens
                (loss * world_size).backward()  # FSDP averages gradients over ranks; this makes it a sum
                sums += UpdateSums.of(this.old_logp, logp, trained, side, this.surprising)
                batch.clipped.index_add_(0, tokens, side.int())

            norm = full_tensor(torch.nn.utils.clip_grad_norm_(policy.parameters(), cfg.max_grad_norm)).item()
            if not math.isfinite(norm):  # the same number on every rank
                bad = gather([f"rank {dist.get_rank()}: {not_finite(logp=logp, loss=loss) or 'nothing'}"])
                raise FloatingPointError(f"gradient norm {norm}; not finite in the last micro-batch: {'; '.join(bad)}")
            norms.append(norm)
            run.optimizer.step()
            run.optimizer.zero_grad()
    return {**sums.reduce().metrics(), "grad_norm": sum(norms) / len(norms)}


def train(cfg: Config, phases: Phases) -> None:
    try:
        run, first_step = set_up(cfg, init_distributed(), phases)
        logger = Logger(cfg, run.directory, first_step)
    except ValueError as error:
        refuse(error)
    stop = StopRequest()  # until here a signal ends the process at once: there was nothing to lose
    phases.take()

    for step in range(first_step, cfg.total_steps):
        phases.step = step
        set_seed(seed_of(cfg.seed, "global", step, dist.get_rank()))  # for whatever draws from the global generators
        try:
            line = training_step(run, step)
        except RewardError as error:
            stop_early(run, logger, step, f"grpo.py: error: {error}; stopped", 2)
        except FloatingPointError as error:  # raised alike on every rank
            raise FloatingPointError(f"{error}; {save_evidence(run, step)}") from None
        logger.log(line | phases.take())

        signal_seen = stop.agreed()
        if signal_seen or (step + 1) % cfg.save_every == 0 or step + 1 == cfg.total_steps:
            with phases("save"):
                run.checkpointer.begin(step + 1, trainer_state(run), obstacle=logger.flush())
        if signal_seen and step + 1 < cfg.total_steps:
            stop_early(run, logger, step + 1, f"stopped by {signal.Signals(signal_seen).name}", 128 + signal_seen)
    finish(run, logger)


@record  # torchrun shows the first rank's exception last
def main(argv: list[str] | None = None) -> None:
    steady_streams()
    cfg = parse_config(argv)
    transformers_logging.disable_progress_bar()
    phases = Phases(cfg.timeout_minutes)
    try:
        train(cfg, phases)
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
