"""What LeRobot's trainer prints. A line → its level and text, figures of a step, or a failure.

The format of LeRobot 0.6.1: `INFO 2026-11-28 01:33:30 ot_train.py:641 step:6 smpl:12 ep:1
epch:0.44 loss:68.212 grdn:381.512 lr:5.0e-05 updt_s:0.2 data_s:0.1 …`. Numbers of steps are
rounded (`2K`), so the step is counted from `log_freq`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from crane_x7_vla_rl.data.episode import DataError
from crane_x7_vla_rl.policies.base import PolicyLoadError
from crane_x7_vla_rl.training.errors import (
    ConfigError,
    NotFiniteError,
    OutOfMemoryError,
    OutputError,
    PackageError,
    TrainingError,
    UnfinishedError,
)

LINE: Final = re.compile(
    r"(?:\x1b\[\d+m)*(?P<level>DEBUG|INFO|WARNING|ERROR|CRITICAL) "
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d +(?P<place>\S+:\d+) (?P<text>.*)",
    re.DOTALL,
)
COLOUR: Final = re.compile(r"\x1b\[[\d;]*m")
FIGURE: Final = re.compile(r"(?P<name>[\w/]+):(?P<value>[-+.\w]+)")
NAMES: Final = {
    "grdn": "grad_norm",
    "lr": "learning_rate",
    "updt_s": "update_s",
    "data_s": "dataloading_s",
    "smp/s": "samples_per_s",
    "epch": "epochs",
    "kld_loss": "kl_loss",
}
"""LeRobot's short names → ours."""
ROUNDED: Final = ("step", "smpl", "ep")


@dataclass(frozen=True)
class Progress:
    """Means over the last `log_freq` steps."""

    step: int
    values: dict[str, float] = field(default_factory=dict)

    @property
    def bad(self) -> list[str]:
        """Names of figures that are NaN or infinite."""
        watched = ("loss", "grad_norm")
        return [name for name in watched if not math.isfinite(self.values.get(name, 0.0))]


def figures(text: str, step: int) -> Progress | None:
    """Return the figures of a line of progress at `step`; None for any other text."""
    if not (text.startswith("step:") and " loss:" in text):
        return None
    values = {}
    for found in FIGURE.finditer(text):
        name = found["name"]
        if name not in ROUNDED:
            try:
                values[NAMES.get(name, name)] = float(found["value"])
            except ValueError:
                continue
    return Progress(step, values)


def shown(progress: Progress, steps: int, elapsed_s: float, done: int) -> str:
    """Return a line of our log; `done` steps took `elapsed_s`."""
    value = progress.values
    parts = [f"step {progress.step} of {steps}", f"loss {value.get('loss', math.nan):.4g}"]
    if "grad_norm" in value:
        parts.append(f"gradient {value['grad_norm']:.3g}")
    if "learning_rate" in value:
        parts.append(f"rate {value['learning_rate']:.2g}")
    if done > 0:
        each_s = elapsed_s / done
        parts.append(f"{each_s:.3g} s per step")
        parts.append(f"{(steps - progress.step) * each_s / 60:.0f} min left")
    return ", ".join(parts)


CAUSES: Final[tuple[tuple[str, type[Exception], str], ...]] = (
    (r"OutOfMemoryError|CUDA out of memory|DefaultCPUAllocator: can't allocate", OutOfMemoryError,
     "lower training.batch_size (--batch-size), or set policy.gradient_checkpointing"),
    (r"No space left on device", OutputError,
     "free some space, or save less often (training.save_freq)"),
    (r"FileExistsError.*[Oo]utput directory", OutputError,
     "choose another job.output_dir, or resume with --resume auto"),
    (r"GatedRepoError|401 Client Error|403 Client Error|RepositoryNotFoundError", PolicyLoadError,
     "check the name, and set HF_TOKEN to a token that has access; π0's tokenizer"
     " google/paligemma-3b-pt-224 asks for consent on its page"),
    (r"LocalEntryNotFoundError|OfflineModeIsEnabled|Cannot find the requested files in the"
     r" (disk|local) cache", PolicyLoadError,
     "the Hub does not answer, and the cache does not hold it: try again later"),
    (r"Error\(s\) in loading state_dict|size mismatch for |SafetensorError", PolicyLoadError,
     "the weights belong to a policy with other options; use policy.path to take its own"),
    (r"DistBackendError|DistNetworkError|DistStoreError|NCCL error|ncclRemoteError"
     r"|Connection closed by peer|Connection reset by peer|Gloo .*(onnection|imed out)",
     UnfinishedError, "another process of this training was lost: start all of them again"),
    (r"DecodingError|unrecognized arguments|ParsingError|error: argument ", ConfigError,
     "LeRobot refuses the options; see its message above"),
    (r"is required but not installed|ModuleNotFoundError: No module named", PackageError,
     "run scripts/setup-lerobot"),
    (r"BackwardCompatibilityError|ForwardCompatibilityError|does not contain quantile|"
     r"IndexError: Invalid key|parquet|Corrupt", DataError,
     "check the data set with crane-x7-vla-rl validate"),
)  # fmt: skip
"""Text in the last lines, the error that it is, and what to do."""
KILLED: Final = -9


def failure(code: int, tail: Sequence[str]) -> Exception:
    """Return the error of a trainer that ended with `code`, from its last lines."""
    text = "\n".join(tail)
    last = next((line.strip() for line in reversed(tail) if _says(line)), "it printed nothing")
    for pattern, kind, advice in CAUSES:
        if found := re.search(f"^.*(?:{pattern}).*$", text, re.MULTILINE):
            return kind(f"LeRobot ended with code {code}: {found[0].strip()[:300]}; {advice}")
    if code == KILLED:
        return OutOfMemoryError(
            "LeRobot was killed, most likely by the system because memory ran out; lower"
            " training.batch_size (--batch-size) or training.num_workers"
        )
    return TrainingError(f"LeRobot ended with code {code}: {last[:300]}; train.log has the rest")


def _says(line: str) -> bool:
    return bool(line.strip()) and not line.startswith((" ", "\t"))


def not_finite(progress: Progress, newest: str) -> NotFiniteError:
    """Return the error of a loss or gradient that is NaN; `newest` is the last checkpoint."""
    return NotFiniteError(
        f"step {progress.step}: {' and '.join(progress.bad)} not finite; nothing was saved since"
        f" {newest}. Lower policy.optimizer_lr (--learning-rate) and resume, or check the data set"
        " with crane-x7-vla-rl validate"
    )
