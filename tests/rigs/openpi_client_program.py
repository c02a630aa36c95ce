"""Run in the environment of openpi-client: asks a server and prints what came as JSON.

python openpi_client_program.py URL API_KEY
"""

import json
import sys

import numpy as np
from openpi_client.websocket_client_policy import WebsocketClientPolicy

HOME_RAD = [0.0, 0.39, 0.0, -1.96, 0.0, -0.79, 1.57, 0.0]


def main() -> None:
    policy = WebsocketClientPolicy(sys.argv[1], api_key=sys.argv[2])
    picture = np.full((480, 640, 3), 128, np.uint8)
    observation = {
        "observation/image": picture,
        "observation/state": np.array(HOME_RAD, np.float32),
        "prompt": "pick up the red cube",
    }
    answers = [policy.infer(observation) for _ in range(3)]
    try:
        policy.infer({"prompt": "pick up the red cube"})
        error = ""
    except RuntimeError as raised:
        error = str(raised)
    print(
        json.dumps(
            {
                "numpy": np.__version__,
                "metadata": policy.get_server_metadata(),
                "shapes": [each["actions"].shape for each in answers],
                "dtype": str(answers[0]["actions"].dtype),
                "finite": bool(np.isfinite(answers[0]["actions"]).all()),
                "timing": answers[-1]["server_timing"],
                "error": error,
            }
        )
    )


main()
