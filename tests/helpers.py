"""What several test files use: real processes, as a user starts them, and the tiny preset's configuration."""

import os
import subprocess
import sys
from pathlib import Path

from trainer.config import PRESETS, Config

HERE = Path(__file__).parent.parent  # the repository
SMALL = dict(  # the size of a random model; `SMALL | dict(...)` for what a test needs to be different
    vocab_size=100,
    hidden_size=64,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    max_position_embeddings=128,
    dtype="float32",
)


def environment() -> dict[str, str]:
    """For a process of its own: one thread, and the repository's files can be imported."""
    paths = [str(HERE), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def python(*args, check=True, **options) -> subprocess.CompletedProcess:
    """One process. With `check` it has to end well."""
    options = dict(cwd=HERE, env=environment(), capture_output=True, text=True, timeout=500) | options
    done = subprocess.run([sys.executable, *map(str, args)], **options)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def torchrun(*args, ranks=2, check=True) -> subprocess.CompletedProcess:
    """A job of several ranks."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    return python(*launcher, *args, check=check)


def tiny_config(**changes) -> Config:
    return Config(**(PRESETS["tiny"] | dict(preset="tiny") | changes))
