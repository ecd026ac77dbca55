"""What a run consists of: built from its configuration, put back on resume, and kept as evidence of a bad step."""

import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import rewards
from methods import Method
from sample import Sampler, eos_ids, make_sampler
from schedules import Schedule
from trainer import data
from trainer.checkpoint import Checkpointer, make_run_directory
from trainer.config import Config
from trainer.distributed import Phases, end_distributed, on_rank0, print0
from trainer.farewell import farewell
from trainer.logger import Logger, check_report
from trainer.model import describe, find_model, first_line, load_model, one_line, open_model
from trainer.policy import Policy, build_policy, check_memory, require_supported
from trainer.rollout import Environment


@dataclass
class Run:
    """What a run keeps from step to step."""

    cfg: Config
    directory: Path
    environment: Environment
    sampler: Sampler
    policy: Policy
    optimizer: torch.optim.Optimizer
    checkpointer: Checkpointer
    schedule: Schedule
    method: Method
    phases: Phases
    draws: int = 0  # batches of prompts that were taken from the data so far
    evidence: dict | None = None  # the tensors of this step, which are saved if it goes wrong


def set_up(cfg: Config, device: torch.device, phases: Phases) -> tuple[Run, int]:
    """All that a run needs, and the step that it starts or goes on with. Raises ValueError for what users can mend."""
    world_size, local_world_size = dist.get_world_size(), int(os.environ["LOCAL_WORLD_SIZE"])
    where = f"{world_size} {'GPUs' if device.type == 'cuda' else 'CPU processes'}"
    print0(f"preset {cfg.preset} on {where}: schedule {cfg.schedule}, objective {cfg.objective}")
    if world_size % cfg.vllm_tp:
        raise ValueError(f"--vllm-tp {cfg.vllm_tp} must divide the number of processes, {world_size}")
    reward = rewards.load_reward(cfg.reward)
    on_rank0(check_report, cfg.report_to)
    if cfg.model == "tiny":
        on_rank0(find_model, "tiny")  # one rank makes it
    model, tokenizer, model_config = open_model(cfg.model)
    with one_line(model):
        ends = eos_ids(model)
    print0("a response ends with " + ", ".join(f"{tokenizer.decode([i])} ({i})" for i in ends))
    max_len = cfg.max_prompt_tokens + cfg.max_response_tokens
    context = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    if context and context < max_len:
        raise ValueError(
            f"--max-prompt-tokens {cfg.max_prompt_tokens} + --max-response-tokens {cfg.max_response_tokens} is more "
            f"than the {context} positions of {model}: lower them, or raise max_position_embeddings in the config.json "
            "of a copy of it (Qwen2.5-Math-7B's 4096 are commonly set to 32768)"
        )
    require_supported(model, model_config, device)
    check_memory(model, local_world_size, device, cfg.vllm_gpu_memory)
    problems, dropped = data.encode_problems(data.load_problems(cfg.data), tokenizer, cfg.max_prompt_tokens)
    found = f"{len(problems)} problems from {cfg.data}, {dropped} dropped as longer than {cfg.max_prompt_tokens} tokens"
    if len(problems) < cfg.prompts_per_step:
        raise ValueError(f"--prompts-per-step {cfg.prompts_per_step}: there are {found} (--max-prompt-tokens)")
    print0(found)
    data.check_prompts(cfg.model, tokenizer, problems, ends, model_config.get_text_config().vocab_size)
    lm = load_model(model)  # it and all above say what is wrong before the run has a directory, or a GPU's memory
    on_rank0(check_saving, lm, tokenizer)

    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    limits = dict(max_len=max_len, tp=cfg.vllm_tp, gpu_memory=cfg.vllm_gpu_memory, max_num_seqs=cfg.vllm_max_num_seqs)
    sampler = make_sampler(cfg.sampler, model, device=device, dtype=dtype, seed=cfg.seed, **limits)
    sampler.sleep()  # on a GPU its memory is the trainer's until the next sync
    shape = (world_size // local_world_size, local_world_size)  # replicated between nodes, sharded within one
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=("replicate", "shard"))
    policy = build_policy(lm, mesh, cfg.temperature)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=cfg.lr, weight_decay=cfg.weight_decay, fused=True)
    directory = on_rank0(make_run_directory, cfg)  # late, so that what went wrong before leaves none behind
    saver = Checkpointer(directory, policy, optimizer)
    environment, schedule, method = Environment(problems, reward, tokenizer), cfg.make_schedule(), cfg.make_method()
    run = Run(cfg, directory, environment, sampler, policy, optimizer, saver, schedule, method, phases)
    state = saver.load(directory) if cfg.resume else None  # None where there is no checkpoint, too
    first_step = resume(run, state) if state else 0
    if cfg.resume:
        print0(f"resuming {directory} after {first_step} of {cfg.total_steps} steps")
    sampler.sync(policy.full_tensors())
    return run, first_step


def check_saving(lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Writes all of model/ but the weights, and throws it away. Raises ValueError, while there is nothing to lose."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            lm.config.save_pretrained(scratch)
            describe(lm.name_or_path).write(Path(scratch), tokenizer)
        except Exception as error:  # whatever transformers may raise
            raise ValueError(f"--model {lm.name_or_path}: it could not be saved ({first_line(error)})") from None


def trainer_state(run: Run) -> dict:
    """What a checkpoint keeps beside weights and optimizer. There is no random state, see `distributed.seed_of`."""
    return {
        "data": data.data_hash(run.environment.problems, "problem", "answer", "prompt_ids"),
        "draws": run.draws,
        "schedule": run.schedule.state_dict(),
        "method": run.method.state_dict(),
    }


def resume(run: Run, state: dict) -> int:
    """Puts a `trainer_state` back; returns the step that comes next. Raises ValueError if the prompts have changed."""
    if state.get("data") != trainer_state(run)["data"]:
        raise ValueError(
            f"--resume {run.directory}: the prompts of {run.cfg.data} that fit into --max-prompt-tokens are not those "
            "that this run began with; put the old file, or the model's old chat template, back, or start another run"
        )
    run.draws = state["draws"]
    run.schedule.load_state_dict(state["schedule"])
    run.method.load_state_dict(state["method"])
    return state["step"]


def finish(run: Run, logger: Logger) -> None:
    """Waits for the last checkpoint, saves the model, and says on rank 0 what happened. A collective."""
    logger.close()
    with run.phases("save"):
        run.checkpointer.finish()
        error = run.policy.save(run.directory / "model", run.environment.tokenizer)
    if error := run.checkpointer.error or error:  # the checkpointer's is on rank 0
        sys.exit(f"grpo.py: error: {error}; once it can be, --resume {run.directory}")
    first = dist.get_rank() == 0
    end_distributed(run.sampler)
    if first:  # alone by now, since the farewell of the built-in task takes a minute
        logger.finish_report()
        with run.phases("farewell"):
            try:
                print(farewell(run.cfg, run.directory), flush=True)
            except Exception as error:  # of matplotlib, or of a full disk: the run is done all the same
                print(f"model   {run.directory / 'model'}\n(curves.png could not be drawn: {error})", flush=True)


def stop_early(run: Run, logger: Logger, steps: int, why: str, exit_code: int) -> None:
    """Ends the process after `steps` steps, with a checkpoint of them. A collective."""
    if run.checkpointer.last != steps:
        run.checkpointer.begin(steps, trainer_state(run), obstacle=logger.flush())
    run.checkpointer.finish()
    logger.close()
    print0(f"{why} after {steps} steps; go on with --resume {run.directory}", file=sys.stderr)
    logger.finish_report()
    end_distributed(run.sampler)
    sys.exit(exit_code)


def save_evidence(run: Run, step: int) -> str:
    """Keeps the weights, and on rank 0 the rollouts, of a step that went wrong; says where. A collective."""
    directory = run.directory / f"bad-step-{step}"
    if error := run.policy.save(directory, run.environment.tokenizer):
        return error
    if dist.get_rank() == 0:
        torch.save(run.evidence, directory / "rollouts.pt")
    return f"weights left as they were, saved with the rollouts in {directory}"


def not_finite(**tensors: torch.Tensor) -> str:
    """How many numbers of which tensors are not finite; empty where all are."""
    bad = {name: int((~tensor.isfinite()).sum()) for name, tensor in tensors.items()}
    return ", ".join(f"{n} of {tensors[name].numel()} numbers in {name}" for name, n in bad.items() if n)
