"""Train ACT on ROS bags: `python train.py --config config.yaml --override training.lr=5e-5`.

The same file runs alone, under torchrun (RANK is set), and as a task of OSMO. See docs/osmo.md.
"""

import sys

from crane_x7_vla_rl.training.osmo.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
