"""The pipeline's command: the same words → `crane-x7-remote cloud`.

    python local/verda_lerobot_manager.py train --gpu-model H100 --gpus-per-instance 4 \\
        --env-file .env --train-config configs/train.remote.yaml --run-id first_run
"""

import sys

from crane_x7_remote.cli import main

if __name__ == "__main__":
    sys.exit(main(["cloud", *sys.argv[1:]]))
