"""Tests run on the CPU, on a machine with GPUs too: bf16 and other kernels would miss their tolerances. Those marked
gpu are skipped then: `pytest -m gpu` runs them, and them alone."""

import os

SLOW = (  # files of whole runs, in processes of their own, and others of a minute and more
    "checkpoint distributed evaluate grpo integrations_readme integrations_trl logprobs lost memory metrics onestep "
    "page paper_path policy reproduce rewards rollout sample sanity softmax tiny tokens words"
).split()


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.stem.removeprefix("test_") in SLOW:
            item.add_marker("slow")


def pytest_configure(config):  # before any test file imports torch
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # a thread of TRL's, which would wait for a network until the process ends
