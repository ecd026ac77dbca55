"""Tests run on the CPU, on a machine with GPUs too: bf16 and other kernels would miss their tolerances. Those marked
gpu are skipped then: `pytest -m gpu` runs them, and them alone."""

import os


def pytest_configure(config):  # before any test file imports torch
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # a thread of TRL's, which would wait for a network until the process ends
