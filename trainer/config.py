"""Every option of a training run: one dataclass, three presets, and the checks that need nothing loaded.

The paper states the defaults of model, data, total_steps, prompts_per_step, group_size, max_response_tokens and lr.
Those marked [recipe] are of verl's public DAPO recipe for a 7B model, whose known numbers (512 prompts a step, learning
rate 1e-6) match the paper's.
"""

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, get_type_hints

import torch
from transformers import HfArgumentParser

from clipping import REGIONS
from methods import METHODS, ON_TARGET, TARGETS, Method, make_method
from schedules import SCHEDULES, TWO_PHASE, Schedule, make_schedule
from trainer.distributed import steady_streams

PRESETS = {
    "paper": {},  # Config's own defaults: arXiv 2602.09782, experiments; sized for 8 GPUs of 80 GB
    # One GPU, a real small model and GSM8K. With AdamW's float32 moments 1.5B takes 30 GiB in an update, and 25 GB
    # beside vLLM's share: 80 GB do, and 48 with --vllm-gpu-memory .4. Qwen/Qwen2.5-0.5B-Instruct takes 13 GiB: 24 GB
    # do, of a card that computes in bf16 (L4, A10, RTX 3090). At one H200's rates (study/memory.py) a step takes about
    # 19 s if responses have 250 tokens, so the run half an hour. Nobody has run it with a real model yet. Its score
    # before and after: evaluate.py --model MODEL RUN/model --benchmarks gsm8k --samples 4 --max-new-tokens 1024
    #
    # --schedule auto is od here. Small instruct models start at low entropy, and under a wide upper bound theirs may
    # rise without end (TRL #6407, verl #2738). od is the one schedule that looks at the entropy: it begins with the
    # narrow upper bound, and goes back to it whenever entropy is above its band. id widens the bound in any case.
    "small": dict(
        model="Qwen/Qwen2.5-1.5B-Instruct",
        data="openai/gsm8k:main",
        od_ratio=0.5,  # in 100 steps the paper's 0.2 of the first entropy would hardly be reached
        total_steps=100,  # 117 batches are all of the training set
        prompts_per_step=64,
        max_prompt_tokens=512,
        max_response_tokens=1024,
        mini_batches=4,  # 16 prompts each
        micro_batch_tokens=8192,
        vllm_gpu_memory=0.5,
        save_every=50,
    ),
    "tiny": dict(  # a model of 0.1M parameters and the task in tasks/tiny.py, on a laptop's CPU, in minutes
        model="tiny",
        data="tiny",
        od_ratio=0.6,  # the paper's 0.2 is never reached here
        total_steps=160,
        prompts_per_step=16,
        group_size=16,
        max_prompt_tokens=32,
        max_response_tokens=14,
        lr=3e-4,
        lr_warmup_steps=2,
        mini_batches=8,
        epochs=4,
        micro_batch_tokens=4096,
        vllm_max_num_seqs=256,
        save_every=25,
    ),
}


class Range(NamedTuple):
    """What a number must lie in, both ends included."""

    least: float
    most: float


Positive = Annotated[int, Range(1, 10**9)]
NotNegative = Annotated[int, Range(0, 10**9)]
SAME_RUN = "changed on resume, it would make it another run"


def opt(default, help: str, **kwargs):
    return field(default=default, metadata={"help": help, **kwargs})


@dataclass
class Config:
    """GRPO with flexible entropy control (arXiv 2602.09782). Defaults shown are those of the preset in force."""

    # what to run
    preset: Literal["auto", *PRESETS] = opt(
        "auto", "defaults of flags; auto: paper on several GPUs, small on one, tiny on none"
    )
    schedule: Annotated[Literal["auto", *SCHEDULES], SAME_RUN] = opt(
        "auto", "how the thresholds move; auto: id with grpo (preset small: od), else static"
    )
    model: Annotated[str, SAME_RUN] = opt(
        "Qwen/Qwen2.5-7B", "hub id or directory of a causal language model; tiny: the built-in one"
    )
    data: Annotated[str, SAME_RUN] = opt(
        "BytedTsinghua-SIA/DAPO-Math-17k", "hub id or JSONL/Parquet/CSV file; tiny: the built-in task"
    )
    output: str | None = opt(None, "run directory; default: a fresh runs/PRESET-SCHEDULE-seedN")
    resume: str | None = opt(None, "go on with this run; auto: with the one above, or start it", metavar="DIR")
    seed: Annotated[int, Range(0, 2**32 - 1), SAME_RUN] = opt(0, "seeds data order, rollouts and mini-batches")
    # schedule
    phase_share: Annotated[float, SAME_RUN] = opt(0.5, "id, id-up, did: the first phase's share of the run")
    od_ratio: Annotated[float, SAME_RUN] = opt(0.2, "od: the lower end of its band as a share of the first entropy")
    # objective
    objective: Annotated[Literal[tuple(METHODS)], SAME_RUN] = opt("grpo", "what is optimised: a method of methods/")
    target: Annotated[str, SAME_RUN] = opt(
        "level",
        f"{', '.join(ON_TARGET)}: the entropy to hold: {', '.join(TARGETS)}, or knots such as 0:1,0.25:0.6,1:0.2 "
        "(fraction of T : multiple of the first step's entropy)",
    )
    entropy_bonus: Annotated[float, Range(-(10**9), 10**9)] = opt(0.001, "entropy-bonus: c of J + c · mean H")
    train_regions: Annotated[str | None, SAME_RUN] = opt(
        None, "train these regions' tokens only, e.g. E2,E3: the paper's experiment"
    )
    # rollouts
    total_steps: Annotated[Positive, SAME_RUN] = opt(400, "T, rollout batches in the run")
    prompts_per_step: Annotated[Positive, SAME_RUN] = opt(512, "prompts in a rollout batch")
    group_size: Annotated[int, Range(2, 10**9), SAME_RUN] = opt(8, "G, responses sampled for each prompt")
    max_prompt_tokens: Positive = opt(2048, "longer prompts are dropped")  # [recipe]
    max_response_tokens: Positive = opt(8192, "longer responses are cut off")
    temperature: Annotated[float, Range(0.01, 100)] = opt(
        1.0, "of the sampling, without top-p or top-k; the trainer's logits are divided by it too"
    )
    mask_truncated: bool = opt(False, "leave responses cut off at the length limit out of the loss")
    overlong_buffer: NotNegative = opt(
        0, "soft length penalty over so many last tokens before the limit (DAPO); 0: none"
    )
    dynamic_sampling: Positive = opt(
        1, "draw up to so many batches until enough groups have unequal rewards (DAPO); 1: off"
    )
    reward: Annotated[str, SAME_RUN] = opt(
        "auto", "module:function, see rewards.py; auto: rewards:score, and the built-in task's own for --data tiny"
    )
    sampler: Literal["auto", "vllm", "transformers"] = opt("auto", "auto: vllm where it is installed")
    vllm_tp: Positive = opt(1, "neighbouring ranks that hold one vLLM engine together (tensor parallelism)")
    # Others use .5 to .6 (verl's tuning page), and ran out of memory at .7 when vLLM woke beside what the trainer still
    # held (SkyRL #2248). .75 would leave 9 GB of 80 beside 7B's weights and moments on 8 GPUs.
    vllm_gpu_memory: Annotated[float, Range(0.01, 0.99)] = opt(
        0.6, "vLLM's share of each GPU's memory while it generates"
    )
    vllm_max_num_seqs: Positive = opt(512, "sequences that an engine decodes at once")  # all of a GPU, if there are 8
    is_correction: Literal["auto", "none", "token"] = opt(
        "auto", "token: weight each token's loss by min(π_old/π_sampler, 2); auto: token on GPUs, none on CPUs"
    )
    check_sync: bool = opt(True, "end the run if the sampler's log-probabilities are not the trainer's")
    # update
    lr: Annotated[float, Range(1e-30, 1e38)] = opt(1e-6, "AdamW's learning rate")
    lr_warmup_steps: NotNegative = opt(10, "rollout steps of linear warm-up")  # [recipe]
    weight_decay: Annotated[float, Range(0, 10**9)] = opt(0.1, "AdamW's weight decay")  # [recipe]
    max_grad_norm: Annotated[float, Range(1e-30, 1e38)] = opt(
        1.0, "gradient norm above which gradients are scaled down"
    )  # [recipe]
    mini_batches: Positive = opt(16, "optimizer steps per pass over a rollout batch")  # [recipe] 32 prompts each
    epochs: Positive = opt(1, "passes over each rollout batch")  # [recipe]
    micro_batch_tokens: Positive = opt(
        16384, "padded tokens per forward/backward on a rank: lower it when memory runs out"
    )
    # run
    save_every: Positive = opt(20, "steps between two checkpoints")
    compare: bool = opt(True, "built-in task: train static GRPO beside it, with the same seed, when the run ends")
    report_to: Literal["none", "wandb", "tensorboard"] = opt("none", "also log metrics there")
    timeout_minutes: Annotated[float, Range(0.001, 100_000)] = opt(
        60.0, "a phase of a step (rollout, update ...) that takes longer ends the run"
    )

    def __post_init__(self):
        """Raises ValueError, naming the flag, for a run that could not work or would silently do nothing."""
        if self.schedule == "auto":
            entropy_control = "od" if self.preset == "small" else "id"
            self.schedule = entropy_control if self.objective == "grpo" else "static"
        if self.reward == "auto":
            self.reward = "tasks.tiny:score" if self.data == "tiny" else "rewards:score"
        if self.is_correction == "auto":
            self.is_correction = "token" if torch.cuda.is_available() else "none"
        if self.model != "tiny" and os.path.isdir(self.model):
            self.model = os.path.abspath(self.model)  # a run may be resumed from another directory
        if self.data != "tiny" and os.path.exists(self.data):
            self.data = os.path.abspath(self.data)
        if (where := os.path.abspath(self.default_directory)) != where.encode(errors="replace").decode():
            raise ValueError(f"--output {where!r}: give a path that is UTF-8, a model can't be saved into another one")
        self.make_schedule()
        if not self.make_method().uses_thresholds and self.schedule != "static":
            raise ValueError(
                f"--objective {self.objective} does not use the thresholds, so --schedule {self.schedule} "
                "would do nothing: use static"
            )
        for name, (least, most) in ranges().items():
            if not least <= getattr(self, name) <= most:
                flag, value = name.replace("_", "-"), getattr(self, name)
                raise ValueError(f"--{flag} must be at least {least} and at most {most}, got {value}")
        rows = self.prompts_per_step * self.group_size
        if self.mini_batches * self.epochs == 1:
            raise ValueError("--mini-batches 1 --epochs 1: all ratios are 1 and every schedule does nothing; raise one")
        if rows % self.mini_batches:
            raise ValueError(f"--mini-batches {self.mini_batches} must divide prompts_per_step × group_size = {rows}")
        if self.micro_batch_tokens < (longest := self.max_prompt_tokens + self.max_response_tokens):
            least = f"--max-prompt-tokens + --max-response-tokens = {longest}"
            raise ValueError(f"--micro-batch-tokens {self.micro_batch_tokens} must be at least {least}")
        if self.overlong_buffer > self.max_response_tokens:
            raise ValueError(
                f"--overlong-buffer {self.overlong_buffer} exceeds --max-response-tokens {self.max_response_tokens}"
            )
        if self.report_to != "none" and importlib.util.find_spec(self.report_to) is None:
            raise ValueError(f"--report-to {self.report_to}: not installed here: pip install {self.report_to}")
        self.trained_regions()
        self.refuse_flags_without_effect()

    def refuse_flags_without_effect(self) -> None:
        """Raises ValueError for a flag that was changed although this run does not look at it."""
        looked_at = {
            "phase_share": self.schedule in TWO_PHASE,
            "od_ratio": self.schedule == "od",
            "target": self.objective in ON_TARGET,
            "entropy_bonus": self.objective == "entropy-bonus",
            "vllm_tp vllm_gpu_memory": self.sampler != "transformers",
        }
        idle = " ".join(names for names, is_looked_at in looked_at.items() if not is_looked_at).split()
        for name in idle:
            if getattr(self, name) != self.defaults()[name]:
                raise ValueError(
                    f"--{name.replace('_', '-')} {getattr(self, name)} has no effect with --schedule {self.schedule} "
                    f"--objective {self.objective} --sampler {self.sampler} --is-correction {self.is_correction}"
                )

    def defaults(self) -> dict:
        """Of every field, in the preset in force."""
        return {f.name: f.default for f in fields(self)} | PRESETS.get(self.preset, {})

    def make_schedule(self) -> Schedule:
        return make_schedule(self.schedule, self.total_steps, self.phase_share, self.od_ratio)

    def make_method(self) -> Method:
        return make_method(self.objective, self.target, self.total_steps, self.entropy_bonus)

    def trained_regions(self) -> list[int]:
        """--train-regions as row numbers of `clipping.region_masks`; empty where all tokens are trained."""
        names = self.train_regions.upper().split(",") if self.train_regions is not None else []
        if unknown := sorted(set(names) - set(REGIONS)):
            raise ValueError(f"--train-regions: unknown region {', '.join(unknown)}: give some of {','.join(REGIONS)}")
        return sorted({REGIONS.index(name) for name in names})

    @property
    def label(self) -> str:
        """The name of what steers entropy: the schedule, or another objective than grpo."""
        return self.schedule if self.objective == "grpo" else self.objective

    @property
    def default_directory(self) -> Path:
        return Path(self.output or f"runs/{self.preset}-{self.label}-seed{self.seed}")

    def to_json(self) -> str:
        return json.dumps({k: v for k, v in vars(self).items() if k != "resume"}, indent=2)

    def changes(self, other: dict) -> dict[str, str]:
        """{flag: "old -> new"} against another configuration, wherever the two runs write."""
        new = {k: v for k, v in vars(self).items() if k not in ("output", "resume")}
        return {k: f"{other[k]!r} -> {v!r}" for k, v in new.items() if v != other[k]}


def ranges() -> dict[str, Range]:
    """{field: what its number must lie in}."""
    hints = get_type_hints(Config, include_extras=True)
    found = {
        name: [part for part in getattr(hint, "__metadata__", ()) if isinstance(part, Range)]
        for name, hint in hints.items()
    }
    return {name: parts[0] for name, parts in found.items() if parts}


def same_run() -> list[str]:
    """The fields that a resumed run may not change."""
    hints = get_type_hints(Config, include_extras=True)
    return [name for name, hint in hints.items() if SAME_RUN in getattr(hint, "__metadata__", ())]


def require_new(output: str) -> None:
    """Raises ValueError if a run can't be started in the directory `output`, which may be left from one that was killed
    before it had written anything but its lock."""
    if os.path.lexists(output) and not (os.path.isdir(output) and set(os.listdir(output)) <= {".lock", "config.tmp"}):
        raise ValueError(f"--output {output} exists: name another one, remove it, or go on in it with --resume auto")
    parent = next(path for path in Path(output).absolute().parents if path.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise ValueError(f"--output {output}: {parent} can't be written")


def read_saved(run: Path) -> dict:
    """The configuration that a run saved. Raises ValueError if there is none, or another version's."""
    if (run.parent / "metrics.jsonl").is_file() and not (run / "metrics.jsonl").is_file():
        raise ValueError(f"--resume {run}: this is a part of a run; is it --resume {run.parent}?")
    try:
        saved = json.loads((run / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"--resume {run}: the run's config.json can't be read ({error})") from None
    names = {f.name for f in fields(Config)} - {"resume"}
    if differing := set(saved) ^ names if isinstance(saved, dict) else {"it is no object"}:
        raise ValueError(f"--resume {run}: its config.json is of another version ({', '.join(sorted(differing))})")
    return saved


def require_working_gpus() -> None:
    """Raises ValueError if this machine has GPUs that torch can't use, which would train on the CPU instead."""
    if torch.cuda.is_available() or os.environ.get("CUDA_VISIBLE_DEVICES") == "" or not shutil.which("nvidia-smi"):
        return
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout.count("GPU ")
    if listed:
        raise ValueError(
            f"nvidia-smi lists {listed} GPUs, but torch {torch.__version__} can use none. It needs a driver of the "
            "R580 series or newer, and its CUDA build, which ./torchrun.sh installs. To train on the CPU anyway, set "
            'CUDA_VISIBLE_DEVICES=""'
        )


def parse_config(argv: list[str] | None = None) -> Config:
    """The run's configuration from the command line: preset first, then flags; with --resume the run's own one first,
    and `resume` is then its directory (None for a run that starts). A bad flag exits with code 2 and is named."""
    parser = HfArgumentParser(
        Config, prog="grpo.py", usage="%(prog)s [--flag value] ...", description=Config.__doc__, allow_abbrev=False
    )
    one_line = lambda message: f"{parser.prog}: error: {' '.join(message.split())}\n"
    parser.error = lambda message: parser.exit(2, one_line(message))  # without the usage
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--preset", default="auto")
    preset = early.parse_known_args(argv)[0].preset
    if preset == "auto":
        gpus = max(torch.cuda.device_count(), int(os.environ.get("WORLD_SIZE", 1)))  # a rank may see its own alone
        preset = ("small" if gpus == 1 else "paper") if torch.cuda.is_available() else "tiny"
    parser.set_defaults(**PRESETS.get(preset, {}))  # an unknown preset is refused by the next line

    parse = lambda preset: Config(**vars(parser.parse_args(argv)) | {"preset": preset})
    try:
        require_working_gpus()
        cfg = parse(preset)
        directory = cfg.default_directory if cfg.resume in (None, "auto") else Path(cfg.resume)
        if cfg.resume == "auto" and not (directory / "config.json").is_file():
            cfg.output, cfg.resume = str(directory), None
        if cfg.resume is None:
            if cfg.output:
                require_new(cfg.output)
            return cfg
        saved = read_saved(directory)
        parser.set_defaults(**saved)
        cfg = parse(saved["preset"])
        cfg.output = cfg.resume = str(directory)
        if other := [f"{flag}: {change}" for flag, change in cfg.changes(saved).items() if flag in same_run()]:
            raise ValueError(
                f"--resume {directory}: this would be another run ({', '.join(other)}); leave these flags out"
            )
        return cfg
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":  # torchrun.sh looks at the flags once before it starts a process per GPU
    steady_streams()
    parse_config()
