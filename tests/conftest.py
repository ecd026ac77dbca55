"""Tests run on the CPU, on a machine with GPUs too: bf16 and other kernels would miss their tolerances."""

import os

os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # a thread of TRL's, which would wait for a network until the process ends
