"""Tests run on the CPU, on a machine with GPUs too: bf16 and other kernels would miss their tolerances."""

import os

os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.setdefault("OMP_NUM_THREADS", "1")
