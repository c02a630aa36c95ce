"""A LeRobot checkpoint behind openpi's protocol, inside LeRobot's environment.

    .venv-lerobot/bin/python -m crane_x7_remote.lerobot.serve --checkpoint FOLDER --port 0

Prints `serving ws://127.0.0.1:PORT` to standard output once the policy is loaded; everything else
goes to standard error. An error is one line that begins with `error: `; the exit code is
errors.ExitCode's. `inference` starts this program with --until-stdin-closes: it then ends with the
process that started it, however that ends.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import IO, Any, Final

from crane_x7_remote.errors import RemoteError

logger = logging.getLogger(__name__)

POLICY_IO: Final = "policy_io.yaml"
SERVING: Final = "serving "
ERROR: Final = "error: "
GRACE_S: Final = 2.0
"""After the end of standard input, the process is killed if it does not end within this time."""


def main(argv: list[str] | None = None) -> int:
    """Serve until a signal."""
    args = _parser().parse_args(argv)
    out = _take_stdout()
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s"
    )
    if args.until_stdin_closes:
        threading.Thread(target=_watch_stdin, name="stdin", daemon=True).start()
    try:
        _serve(args, out)
    except RemoteError as error:
        print(ERROR + " ".join(str(error).split()), file=sys.stderr, flush=True)
        return int(error.exit_code)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Serve a LeRobot checkpoint by openpi's protocol.")
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, metavar="DIR", help="folder with config.json")
    add("--device", default="cpu", help="cpu, cuda, cuda:1 or auto (%(default)s)")
    add("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    add("--port", type=int, default=0, help="0 picks a free one (%(default)s)")
    add("--threads", type=int, default=0, help="CPU threads of PyTorch; 0: one core fewer")
    add("--until-stdin-closes", action="store_true", help="end when standard input ends")
    return parser


def _serve(args: argparse.Namespace, out: IO[str]) -> None:
    from crane_x7_remote.lerobot.loading import load
    from crane_x7_remote.lerobot.predictor import Predictor
    from crane_x7_remote.policy_server.server import ServerConfig, serve

    folder = args.checkpoint.expanduser().absolute()
    import torch

    torch.set_num_threads(args.threads if args.threads > 0 else own_threads())
    loaded = load(folder, args.device)
    predictor = Predictor(loaded)

    def ready(port: int) -> None:
        print(f"{SERVING}ws://{args.host}:{port}", file=out, flush=True)

    serve(
        predictor.answer,
        metadata(predictor, folder, loaded.config.type),
        ServerConfig(args.host, args.port),
        ready=ready,
    )


def own_threads() -> int:
    """Return the cores that this process may use, less one, at least 1.

    The loop needs a core, too. PyTorch's threads wait for each other actively: with one on every
    core, each of a small policy's 600 layers waits until the loop's core is free (19 ms each).
    """
    return max(1, len(os.sched_getaffinity(0)) - 1)


def metadata(predictor: Any, folder: Path, kind: str) -> dict[str, Any]:
    """Return what the server tells a client on connecting; `policy_io` if the checkpoint has it."""
    made: dict[str, Any] = {
        "policy_type": kind,
        "chunk_steps": predictor.chunk_steps,
        "images": {key: [shape[2], shape[1]] for key, shape in predictor.images.items()},
        "state_dof": predictor.state_dof or 0,
        "action_dof": predictor.action_dof,
        "accepts_reset": True,
        "rtc": predictor.guidance.is_supported,
    }
    if predictor.ensemble is not None:
        made["temporal_ensemble_coeff"] = predictor.ensemble
    io = folder / POLICY_IO
    if io.is_file():
        import yaml

        try:
            made["policy_io"] = yaml.safe_load(io.read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise RemoteError(f"{io} cannot be read: {error}") from error
        action = made["policy_io"].get("action") if isinstance(made["policy_io"], dict) else None
        if isinstance(action, dict) and "period_s" in action:
            made["period_s"] = action["period_s"]
    return made


def _take_stdout() -> IO[str]:
    """Return standard output for ourselves; what LeRobot prints goes to standard error."""
    own = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return own


def _watch_stdin() -> None:
    """End this process when its parent's end of the pipe closes."""
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    logger.info("standard input has ended: stopping")
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(GRACE_S)
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
