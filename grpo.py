"""GRPO with flexible entropy control (arXiv 2602.09782): the training loop.

    ./torchrun.sh --schedule id                                # sets the machine up, then as below with all GPUs (none: 2 CPU ranks)
    torchrun --nproc_per_node 8 grpo.py --schedule id          # the paper's set-up
    python grpo.py --preset tiny --schedule static             # one process, a laptop, minutes

One step k of T:

    1  take prompts, sample G responses to each                        sample.py
    2  reward each response 0 or 1                                     rewards.py
    3  advantages: Â = (R − mean) / std within each group              `group_advantages`
    4  log π_old, entropy H and B of every response token              policy.py, clipping.py
    5  the schedule turns (k, H) into two clip thresholds ε(p)         schedules.py
    6  several optimizer steps on the clipped surrogate                `update`
    7  hand the new weights to the sampler, log

Against PPO: no critic, no KL term, no entropy bonus, and the clip thresholds move. With `--schedule static` it is GRPO.
Every rank keeps the whole rollout batch (token ids and three numbers per token), so mini-batches, their plan over ranks and all
rollout metrics are computed alike everywhere, and the result does not depend on the number of ranks or the micro-batch size.
"""

import math
import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.elastic.multiprocessing.errors import record
from torch.distributed.tensor import DTensor
from transformers import AutoConfig, AutoTokenizer, set_seed
from transformers.utils import logging as transformers_logging

import data
import plots
import rewards
import tiny
from baselines import AdaptiveBonus, EntroPIC, step_plan, token_loss
from batching import collate, plan_micro_batches
from checkpoint import Checkpointer, latest, make_run_directory
from clipping import Line, region_gains, region_masks, token_logp_and_entropy, token_stats
from config import Config, parse_config
from distributed import Phases, StopRequest, end_distributed, gather, init_distributed, print0, seed_of
from memory import check_memory
from metrics import Logger, read_lines, region_metrics
from policy import Policy, build_policy, whole
from rollout import Rollouts, collect, importance_weights, overlong_penalty, sampler_mismatch
from sample import eos_ids, make_sampler
from schedules import Target

CACHE = Path(__file__).parent / ".cache"  # the built-in tiny model
SYNC_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05}  # nats, mean |log π_old − log π_sampler|; sound are 1e-6 and 1e-2


# ------------------------------------------------------------------------------------------------------------ the steps, one by one

def group_advantages(rewards: torch.Tensor, group_size: int) -> torch.Tensor:
    """Â_i = (R_i − mean) / (std + 1e-6) within groups of `group_size` neighbours, std unbiased; [N] -> [N] (paper section 2).
    A group whose rewards are all equal gets exactly 0: it says nothing about which response is better."""
    groups = rewards.view(-1, group_size)
    advantages = (groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-6)
    equal = (groups == groups[:, :1]).all(1, keepdim=True)
    return advantages.masked_fill(equal, 0.0).flatten()


@torch.no_grad()
def old_stats(policy: Policy, rollouts: Rollouts, micro_batch_tokens: int, device: torch.device) -> list[torch.Tensor]:
    """(ln π_old, H, B) of every response token under the current weights: one float32 [3, tokens] per row, on every rank."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    lengths = [len(p) + n for p, n in zip(rollouts.prompts, rollouts.lengths)]
    mine = []
    for micro_batch in plan_micro_batches(lengths, world_size, micro_batch_tokens):
        batch = collate(rollouts.prompts, rollouts.responses, micro_batch[rank])
        stats = torch.stack(policy(batch.to(device), token_stats)).cpu()
        per_row = stats.split([len(rollouts.responses[i]) for i in batch.rows], dim=1)
        mine += [(i, s.clone()) for i, s in zip(micro_batch[rank], per_row) if i >= 0]  # FILLER rows are not ours
    return [s for _, s in sorted(gather(mine), key=lambda pair: pair[0])]


def update(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    rollouts: Rollouts,
    old_logp: list[torch.Tensor],  # per row [tokens]
    advantages: torch.Tensor,  # [rows]
    loss_mask: list[torch.Tensor],  # per row bool [tokens]: the tokens that the loss is averaged over
    weights: list[torch.Tensor],  # per row [tokens]: multiplies a token's loss; 0: it is not trained, and not counted as clipped
    plan: list[torch.Tensor],  # per row [tokens]: what some of the objectives in baselines.py need besides
    upper: Line,
    lower: Line,
    cfg: Config,
    step: int,
    device: torch.device,
    bad_steps_left: int = 0,
) -> dict[str, float]:
    """`cfg.epochs` passes over the batch in `cfg.mini_batches` optimizer steps each. Token-mean loss: the sum over a mini-batch's
    tokens on all ranks, divided once by their number. Returns clip fractions and the like, over all optimizer steps and ranks.

    A gradient that is not finite never reaches the weights: `bad_steps_left` such optimizer steps are left out and counted, one more
    raises FloatingPointError on every rank."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    totals, grad_norms, bad_steps = torch.zeros(len(SUMS), dtype=torch.float64, device=device), [], 0
    row_tokens = [int(mask.sum()) for mask in loss_mask]  # of all ranks: every rank knows every row
    for epoch in range(cfg.epochs):
        shuffle = torch.Generator().manual_seed(seed_of(cfg.seed, step, "epoch", epoch))
        for mini_batch in torch.randperm(len(rollouts.rewards), generator=shuffle).chunk(cfg.mini_batches):
            row = mini_batch.tolist()
            prompts, responses = [rollouts.prompts[i] for i in row], [rollouts.responses[i] for i in row]
            n_tokens = max(1, sum(row_tokens[i] for i in row))
            lengths = [len(p) + len(r) for p, r in zip(prompts, responses)]
            for micro_batch in plan_micro_batches(lengths, world_size, cfg.micro_batch_tokens):
                batch = collate(prompts, responses, micro_batch[rank]).to(device)
                rows = [row[i] for i in batch.rows]
                weight = torch.cat([weights[i] for i in rows]).to(device)
                logp, entropy = policy(batch, token_logp_and_entropy) if "bonus" in cfg.objective else (policy(batch), None)  # [N]
                loss, sums = token_loss(
                    cfg.objective,  # grpo: `clipping.clipped_surrogate`
                    torch.cat([old_logp[i] for i in rows]).to(device),
                    logp,
                    torch.cat([advantages[i].expand(len(old_logp[i])) for i in rows]).to(device),
                    batch.response_mask & torch.cat([loss_mask[i] for i in rows]).to(device) & (weight != 0),
                    upper,
                    lower,
                    torch.cat([plan[i] for i in rows]).to(device),
                    [len(old_logp[i]) for i in rows],
                    entropy,
                )
                loss = (loss * weight).sum() / n_tokens
                (loss * world_size).backward()  # FSDP averages gradients over ranks; this makes it a sum
                totals += torch.stack([sums[name].double() for name in SUMS])
            norm = whole(torch.nn.utils.clip_grad_norm_(policy.parameters(), cfg.max_grad_norm)).item()
            if math.isfinite(norm):  # the same number on every rank
                grad_norms.append(norm)
                optimizer.step()
            elif (bad_steps := bad_steps + 1) > bad_steps_left:
                raise FloatingPointError(f"gradient norm {norm} {first_bad_tensor(policy, logp, loss)}")
            optimizer.zero_grad()
    dist.all_reduce(totals)  # sums and counts together, divided once
    total = dict(zip(SUMS, totals.tolist()))
    tokens = max(1.0, total["tokens"])
    return {
        "clip_frac_high": total["clip_high"] / tokens,
        "clip_frac_low": total["clip_low"] / tokens,
        "kl": total["kl"] / tokens,
        "ratio_clamped": int(total["ratio_clamped"]),
        "grad_norm": sum(grad_norms) / max(1, len(grad_norms)),
        "bad_steps": bad_steps,
    }


SUMS = ("tokens", "clip_high", "clip_low", "kl", "ratio_clamped")  # of what `clipped_surrogate` returns


def first_bad_tensor(policy: Policy, logp: torch.Tensor, loss: torch.Tensor) -> str:
    """Which tensors of the last micro-batch are not finite, rank by rank. A collective."""
    tensors = {"logp": logp, "loss": loss}
    tensors |= {f"gradient of {n}": p.grad.to_local() if isinstance(p.grad, DTensor) else p.grad for n, p in policy.named_parameters()}
    bad = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    return "; ".join(gather([f"rank {dist.get_rank()}: {len(bad)} tensors are not finite, first {bad[0]}"] if bad else []))


def require_finite(**tensors: torch.Tensor) -> None:
    """Raises FloatingPointError that says how many numbers of which tensor are not finite."""
    for name, tensor in tensors.items():
        if bad := int((~tensor.isfinite()).sum()):
            raise FloatingPointError(f"{bad} of {tensor.numel()} numbers in {name} are not finite")


# -------------------------------------------------------------------------------------------------------------------------- set-up

def die(error: Exception) -> None:
    """A user's mistake: one line from one rank, exit code 2."""
    if os.environ.get("RANK", "0") == "0":
        print(f"grpo.py: error: {error}", file=sys.stderr, flush=True)
    sys.exit(2)


def load_problems(cfg: Config, device: torch.device) -> tuple[str, object, list[dict]]:
    """(model directory or id, tokenizer, problems with `prompt_ids`). Raises ValueError for what the user can mend."""
    model = cfg.model
    if model == "tiny":
        if dist.get_rank() == 0:
            tiny.ensure_model(CACHE)
        dist.barrier()
        model = str(tiny.ensure_model(CACHE))
    try:
        tokenizer, model_config = AutoTokenizer.from_pretrained(model), AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise ValueError(f"--model {model}: {str(error).splitlines()[0]}") from None
    eos_ids(model)
    context = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    if context and context < cfg.max_prompt_tokens + cfg.max_response_tokens:
        raise ValueError(
            f"--max-prompt-tokens {cfg.max_prompt_tokens} + --max-response-tokens {cfg.max_response_tokens} is more than the "
            f"{context} positions of {model} (max_position_embeddings)"
        )
    check_memory(model, int(os.environ["LOCAL_WORLD_SIZE"]), cfg.micro_batch_tokens, device, cfg.vllm_gpu_memory)
    problems, dropped = data.encode_problems(data.load_problems(cfg.data), tokenizer, cfg.max_prompt_tokens)
    if len(problems) < cfg.prompts_per_step:
        raise ValueError(f"--prompts-per-step {cfg.prompts_per_step} is more than the {len(problems)} problems in {cfg.data}")
    print0(f"{len(problems)} problems from {cfg.data}, {dropped} dropped as longer than {cfg.max_prompt_tokens} tokens")
    return model, tokenizer, problems


# ------------------------------------------------------------------------------------------------------------------------ the loop

def train(cfg: Config, device: torch.device, phases: Phases, stop: StopRequest) -> None:
    rank, world_size = dist.get_rank(), dist.get_world_size()
    try:
        reward = rewards.load_reward(cfg.reward)
        if world_size % cfg.vllm_tp:
            raise ValueError(f"--vllm-tp {cfg.vllm_tp} must divide the number of processes, {world_size}")
        model, tokenizer, problems = load_problems(cfg, device)
        directory = make_run_directory(cfg)
    except ValueError as error:
        die(error)

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    max_len = cfg.max_prompt_tokens + cfg.max_response_tokens
    sampler = make_sampler(
        cfg.sampler, model, device=device, dtype=dtype, max_len=max_len, seed=cfg.seed, tp=cfg.vllm_tp,
        gpu_memory=cfg.vllm_gpu_memory, max_num_seqs=cfg.vllm_max_num_seqs,
    )  # fmt: skip
    sampler.sleep()  # on a GPU its memory is the trainer's until the next sync
    nodes = world_size // int(os.environ["LOCAL_WORLD_SIZE"])
    mesh = init_device_mesh(device.type, (nodes, world_size // nodes), mesh_dim_names=("replicate", "shard"))
    policy = build_policy(model, mesh, cfg.temperature)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=cfg.lr, weight_decay=cfg.weight_decay, fused=True)
    schedule, target = cfg.make_schedule(), Target(cfg.target, cfg.total_steps, cfg.target_nats)
    controller = {"adaptive-bonus": AdaptiveBonus, "entropic": EntroPIC}.get(cfg.objective, lambda target: None)(target)
    tracker = controller or (schedule if cfg.schedule == "track" else None)
    kept_regions = cfg.region_rows()
    is_level = cfg.is_correction if cfg.is_correction != "auto" else "token" if device.type == "cuda" else "none"

    checkpointer = Checkpointer(directory, policy, optimizer, cfg.keep_checkpoints)
    first_step, draws, bad_steps = 0, 0, 0  # draws: batches of prompts taken from the data so far
    if cfg.resume and (path := latest(directory)):
        state = checkpointer.load(path)
        first_step, draws, bad_steps = state["step"], state["draws"], state["bad_steps"]
        schedule.load_state_dict(state["schedule"])
        if controller:
            controller.load_state_dict(state["controller"])
    if cfg.resume:
        print0(f"resuming {directory} after {first_step} of {cfg.total_steps} steps")
    sampler.sync(policy.full_tensors(dtype))
    logger = Logger(cfg, directory, first_step)

    for step in range(first_step, cfg.total_steps):
        start = time.perf_counter()
        phases.begin_step(step)
        set_seed(seed_of(cfg.seed, "global", step, rank))  # for whatever draws from the global generators, rewards for instance

        # 1, 2  prompts -> responses -> rewards, each rank its share of the prompts, then everything to every rank
        rollouts, rollout_report, draws = collect(sampler, reward, tokenizer, problems, cfg, step, draws, phases)
        sampler.sleep()
        with phases("save"):
            checkpointer.finish()  # of the step before: written while this one sampled, and before the weights change

        # 3, 4  advantages; log π_old, entropy and B under the current weights
        penalties = torch.tensor([overlong_penalty(n, cfg.max_response_tokens, cfg.overlong_buffer) for n in rollouts.lengths])
        advantages = group_advantages(torch.tensor(rollouts.rewards) + penalties, cfg.group_size)  # [rows]
        with phases("old_stats"):
            stats = old_stats(policy, rollouts, cfg.micro_batch_tokens, device)  # per row [3, tokens]
        old_logp, entropy, baseline = torch.cat(stats, dim=1)  # flat [N], all tokens of all ranks
        sampler_logp = torch.cat(rollouts.sampler_logp)
        token_advantages = advantages.repeat_interleave(torch.tensor(rollouts.lengths))
        bad = dict(rollouts=rollouts, stats=stats, advantages=advantages)
        try:
            require_finite(advantages=advantages, sampler_logp=sampler_logp, old_logp=old_logp, entropy=entropy)
            mismatch = sampler_mismatch(old_logp, sampler_logp)
            if cfg.check_sync and mismatch["mean"] > SYNC_TOLERANCE[dtype]:
                raise RuntimeError(
                    f"--check-sync: the sampler's log-probabilities are {mismatch['mean']:.1e} nats off the trainer's on average, "
                    f"allowed are {SYNC_TOLERANCE[dtype]}: its weights or its cache are not the trainer's"
                )
            regions, region_report = region_metrics(old_logp, entropy, baseline, token_advantages)

            # 5  this step's two thresholds, and what else steers
            policy_entropy = entropy.double().mean().item()
            upper, lower = schedule(step, policy_entropy)
            coefficient = controller(step, policy_entropy) if controller else cfg.entropy_coef

            # 6  optimizer steps
            for group in optimizer.param_groups:
                group["lr"] = cfg.lr * min(1.0, (step + 1) / max(1, cfg.lr_warmup_steps))
            loss_mask = [torch.full((n,), done or not cfg.mask_truncated) for n, done in zip(rollouts.lengths, rollouts.finished)]
            generator = torch.Generator().manual_seed(seed_of(cfg.seed, step, "objective"))
            importance = importance_weights(old_logp, sampler_logp, rollouts.lengths, is_level, cfg.is_cap)
            weights, plan = step_plan(
                cfg.objective, old_logp, token_advantages, torch.cat(loss_mask), rollouts.lengths, coefficient, generator
            )
            weights = weights * importance
            if schedule.gain:
                by = baseline if cfg.regions_by == "exact" else None
                weights = weights * region_gains(region_masks(old_logp, entropy, token_advantages, by), schedule.gain)
            if kept_regions is not None:
                weights = weights * regions[kept_regions].any(0)
            with phases("update"):
                update_report = update(
                    policy, optimizer, rollouts, [s[0] for s in stats], advantages, loss_mask, weights.split(rollouts.lengths),
                    plan.split(rollouts.lengths), upper, lower, cfg, step, device, cfg.skip_bad_steps - bad_steps,
                )  # fmt: skip
        except FloatingPointError as error:  # raised alike on every rank
            policy.save(directory / f"bad-step-{step}", tokenizer)
            if rank == 0:
                torch.save(bad, directory / f"bad-step-{step}/rollouts.pt")
            raise FloatingPointError(f"{error}; weights left as they were, saved with the rollouts in {directory}/bad-step-{step}") from None
        bad_steps += update_report["bad_steps"]

        # 7  new weights to the sampler; log; save
        with phases("sync"):
            sampler.sync(policy.full_tensors(dtype))
        seconds = time.perf_counter() - start
        logger.log({
            "step": step, "entropy": policy_entropy, **rollout_report, **update_report,
            "overlong_penalty": penalties.mean().item(), "sampler_mismatch": mismatch,
            "importance_weight": importance.mean().item(), "lr": optimizer.param_groups[0]["lr"], "upper": upper, "lower": lower,
            "target": target(step, tracker.h_init) if tracker else None, "gain": schedule.gain, "coefficient": coefficient,
            "schedule_state": schedule.state_dict(), **region_report, "seconds": {**phases.seconds, "step": seconds},
            "tokens_per_second": len(old_logp) / seconds,
        })  # fmt: skip
        signal_seen = stop.agreed()
        if signal_seen or (step + 1) % cfg.save_every == 0 or step + 1 == cfg.total_steps:
            with phases("save"):
                logger.flush()
                checkpointer.begin(step + 1, {
                    "draws": draws, "bad_steps": bad_steps, "schedule": schedule.state_dict(),
                    "controller": controller.state_dict() if controller else None,
                })  # fmt: skip
        if signal_seen and step + 1 < cfg.total_steps:
            checkpointer.finish()
            logger.close()
            print0(f"stopped by {signal.Signals(signal_seen).name} after {step + 1} steps; go on with --resume {directory}")
            end_distributed(sampler)
            sys.exit(128 + signal_seen)

    logger.close()
    with phases("save"):
        checkpointer.finish()
        policy.save(directory / "model", tokenizer)
    if checkpointer.error:  # on rank 0
        sys.exit(f"grpo.py: error: {checkpointer.error}")
    if rank == 0:
        plots.plot_runs([directory], directory / "curves.png")
        lines = read_lines(directory / "metrics.jsonl")
        first, last = lines[0], lines[-1]
        print(
            f"{cfg.total_steps} steps of {cfg.schedule} in {sum(line['seconds']['step'] for line in lines) / 60:.1f} min: "
            f"reward {first['reward']:.3f} -> {last['reward']:.3f}, entropy {first['entropy']:.3f} -> {last['entropy']:.3f} nats\n"
            f"curves  {directory / 'curves.png'}\nmodel   {directory / 'model'}\nmetrics {directory / 'metrics.jsonl'}"
        )
    end_distributed(sampler)


@record  # torchrun shows the first rank's exception last
def main(argv: list[str] | None = None) -> None:
    cfg = parse_config(argv)
    transformers_logging.disable_progress_bar()
    phases, stop = Phases(cfg.timeout_minutes), StopRequest()
    device = init_distributed(cfg.timeout_minutes + 1)  # so that the phase that hangs is named before its collective gives up
    where = f"{dist.get_world_size()} GPUs" if device.type == "cuda" else f"{dist.get_world_size()} CPU processes"
    print0(f"preset {cfg.preset} on {where}: GRPO, schedule {cfg.schedule}\n{cfg.to_json()}")
    try:
        train(cfg, device, phases, stop)
    except KeyboardInterrupt:
        print0(f"interrupted in {phases.where}")
        sys.exit(130)
    except Exception as error:
        if isinstance(error, RuntimeError):
            time.sleep(5)  # it may be a peer's death that is felt here: give torchrun time to see that one first, and name it
        error.add_note(f"({phases.where})")
        raise


if __name__ == "__main__":
    main()
