"""Every option of a training run: one dataclass, two presets, and the checks that can be made before anything is loaded.

The values marked [recipe] are not stated in the paper; they are those of verl's public DAPO recipe for a 7B model, whose known
numbers (512 prompts a step, learning rate 1e-6) match the paper's.
"""

import argparse
import importlib.util
import json
from dataclasses import asdict, dataclass, field, fields
from typing import Literal

import torch
from transformers import HfArgumentParser

from schedules import SCHEDULES, make_schedule

PRESETS = {
    "paper": dict(  # Qwen2.5-7B on DAPO-Math-17k, arXiv 2602.09782 section 5; sized for 8 GPUs of 80 GB
        model="Qwen/Qwen2.5-7B",
        data="BytedTsinghua-SIA/DAPO-Math-17k",
        total_steps=400,
        prompts_per_step=512,
        group_size=8,
        max_prompt_tokens=2048,  # [recipe]
        max_response_tokens=8192,
        lr=1e-6,
        lr_warmup_steps=10,  # [recipe]
        mini_batches=16,  # [recipe] 32 prompts each
        epochs=1,  # [recipe]
        micro_batch_tokens=16384,
    ),
    "tiny": dict(  # a 100k-parameter model that adds numbers, on a laptop's CPU, in minutes
        model="tiny",
        data="tiny",
        total_steps=100,
        prompts_per_step=32,
        group_size=8,
        max_prompt_tokens=32,
        max_response_tokens=48,
        lr=3e-4,
        lr_warmup_steps=2,
        mini_batches=8,
        epochs=2,
        micro_batch_tokens=4096,
    ),
}


def opt(default, help: str, **kwargs):
    return field(default=default, metadata={"help": help, **kwargs})


@dataclass
class Config:
    """GRPO with flexible entropy control (arXiv 2602.09782). Defaults shown are those of the preset in force."""

    # what to run
    preset: Literal["auto", "paper", "tiny"] = opt("auto", "a set of defaults: paper where CUDA is available, tiny elsewhere; any flag overrides it")
    schedule: str = opt("id", "how the clip thresholds move over training: " + ", ".join(SCHEDULES), metavar="NAME")
    model: str = opt("", "hub id or directory of a causal language model; tiny: the built-in one")
    data: str = opt("", "hub id or local JSONL/Parquet/CSV file of problems with answers; tiny: the built-in task")
    output: str | None = opt(None, "run directory; default: a fresh runs/PRESET-SCHEDULE-seedN")
    seed: int = opt(0, "seeds data order, rollouts and mini-batches")
    # schedule
    phase_share: float = opt(0.5, "id, did: the first phase's share of the run")
    od_h_init: float | None = opt(None, "od: entropy (nats) that its band starts from; default: the first step's")
    od_ratio: float = opt(0.2, "od: the lower end of its band as a share of od_h_init")
    update_regions: str | None = opt(None, "keep only these regions' gradient, e.g. E2,E3: the paper's controlled experiment", metavar="E1,..")
    # rollouts
    total_steps: int = opt(0, "T, rollout batches in the run")
    prompts_per_step: int = opt(0, "prompts in a rollout batch")
    group_size: int = opt(0, "G, responses sampled for each prompt")
    max_prompt_tokens: int = opt(0, "longer prompts are dropped")
    max_response_tokens: int = opt(0, "longer responses are cut off")
    temperature: float = opt(1.0, "of the sampling; the trainer's logits are divided by it too")
    mask_truncated: bool = opt(False, "leave responses cut off at the length limit out of the loss")
    sampler: Literal["auto", "vllm", "transformers"] = opt("auto", "auto: vllm where it is installed")
    reward: str = opt("rewards:score", "module:function that scores completions, see rewards.py")
    # update
    lr: float = opt(0.0, "AdamW's learning rate")
    lr_warmup_steps: int = opt(0, "rollout steps of linear warm-up")
    weight_decay: float = opt(0.1, "AdamW's weight decay")
    max_grad_norm: float = opt(1.0, "gradient norm above which gradients are scaled down")
    mini_batches: int = opt(0, "optimizer steps per pass over a rollout batch")
    epochs: int = opt(0, "passes over each rollout batch")
    micro_batch_tokens: int = opt(0, "padded tokens per forward/backward on each rank: lower it when memory runs out")
    # run
    report_to: Literal["none", "wandb", "tensorboard"] = opt("none", "also log metrics there")
    timeout_minutes: float = opt(30.0, "a collective that takes longer ends the run")

    def __post_init__(self):
        """Raises ValueError, naming the flag, for a run that could not work or would silently do nothing."""
        make_schedule(self.schedule, self.total_steps, self.phase_share, self.od_h_init, self.od_ratio)
        at_least = dict(total_steps=1, prompts_per_step=1, group_size=2, max_prompt_tokens=1, max_response_tokens=1, mini_batches=1,
                        epochs=1, micro_batch_tokens=1, lr_warmup_steps=0)  # fmt: skip
        for name, low in at_least.items():
            if getattr(self, name) < low:
                raise ValueError(f"--{name.replace('_', '-')} must be at least {low}, got {getattr(self, name)}")
        for name in ("lr", "temperature", "max_grad_norm", "timeout_minutes"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"--{name.replace('_', '-')} must be a positive number, got {getattr(self, name)}")
        rows = self.prompts_per_step * self.group_size
        if self.mini_batches * self.epochs == 1:
            raise ValueError(
                "--mini-batches 1 with --epochs 1 is one optimizer step per rollout batch: every ratio is then 1, nothing is ever "
                "clipped and every schedule does nothing; raise one of them"
            )
        if rows % self.mini_batches:
            raise ValueError(f"--mini-batches {self.mini_batches} must divide prompts_per_step × group_size = {rows}")
        if self.micro_batch_tokens < self.max_prompt_tokens + self.max_response_tokens:
            raise ValueError(
                f"--micro-batch-tokens {self.micro_batch_tokens} is less than one longest sequence, "
                f"{self.max_prompt_tokens} prompt + {self.max_response_tokens} response tokens"
            )
        if self.report_to != "none" and importlib.util.find_spec(self.report_to) is None:
            raise ValueError(f"--report-to {self.report_to}: not installed here: pip install {self.report_to}")
        self.region_rows()

    def region_rows(self) -> list[int] | None:
        """--update-regions as row numbers of `clipping.region_masks`; None: all tokens are trained."""
        if self.update_regions is None:
            return None
        names = self.update_regions.upper().split(",")
        if unknown := sorted(set(names) - {"E1", "E2", "E3", "E4"}):
            raise ValueError(f"--update-regions: unknown region {', '.join(unknown)}: give some of E1,E2,E3,E4")
        return sorted({int(name[1]) - 1 for name in names})

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)


def parse_config(argv: list[str] | None = None) -> Config:
    """The run's configuration from the command line: preset first, then flags. A bad flag exits with code 2 and says which."""
    parser = HfArgumentParser(Config, description=Config.__doc__, allow_abbrev=False)
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--preset", default="auto")
    preset = early.parse_known_args(argv)[0].preset
    if preset == "auto":
        preset = "paper" if torch.cuda.is_available() else "tiny"
    parser.set_defaults(**PRESETS.get(preset, {}))  # an unknown preset is refused by the next line
    flags = vars(parser.parse_args(argv))
    flags["preset"] = preset
    try:
        return Config(**{f.name: flags[f.name] for f in fields(Config)})
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
