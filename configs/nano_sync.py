"""The paper's regime on a small scale: the base of `nano_base.py` stays frozen, the sync layers learn to join its streams.

python train.py configs/nano_sync.py --init-from runs/nano_base
"""

import dataclasses
from pathlib import Path

from fourreal.training.config import load_config

NANO = load_config(Path(__file__).with_name("nano.py"))

CONFIG = dataclasses.replace(NANO, name="nano_sync", trains="sync_and_conditions")
