"""Tests run on two slow cores: one thread each keeps them repeatable and lets them share."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)
