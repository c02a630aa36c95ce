"""Progress of training: figures of every update to a file, a terminal, TensorBoard and W&B.

Each update's `Figures`, from the first process alone → all sinks. `metrics.jsonl` holds every
update, one JSON object a line; the rest is a view of it. tensorboard and wandb are imported where
they are configured, and neither may stop a training: what cannot be sent to W&B is kept on disk
and named at the end.
"""

from __future__ import annotations

import json
import logging
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

from crane_x7_vla_rl.data.progress import watched
from crane_x7_vla_rl.log_text import shown
from crane_x7_vla_rl.training.config import loader
from crane_x7_vla_rl.training.config.run_config import RunConfig
from crane_x7_vla_rl.training.errors import ConfigError
from crane_x7_vla_rl.training.run_log import RunLog

if TYPE_CHECKING:
    from rich.console import Console

logger = logging.getLogger(__name__)

METRICS: Final = "metrics.jsonl"
TENSORBOARD: Final = "tensorboard"
PROBE_S: Final = 10.0
INIT_S: Final = 60.0
FINISH_S: Final = 60.0
"""How long a failed run waits for W&B; its service has sent data during the run."""


@dataclass(frozen=True)
class Step:
    """What is logged of an update, of any trainer."""

    step: int
    """Updates done with it."""


@dataclass(frozen=True)
class Figures(Step):
    """One update of fine-tuning."""

    samples: int
    """Seen by all processes together, since the beginning."""
    epoch: float
    loss: float
    """Mean over the update's samples, nats per token."""
    grad_norm: float
    """Norm before clipping."""
    learning_rate: float
    data_s: float
    """Time from requesting samples to having them on the device."""
    update_s: float
    """All other time of the update."""


class Sink(Protocol):
    """Where figures go."""

    def log(self, figures: Step) -> None:
        """Take one update's figures."""
        ...

    def close(self) -> None:
        """Take no more."""
        ...


class MetricsFile:
    """`metrics.jsonl`; lines that a resumed run will write again are removed first."""

    def __init__(self, run: Path, step: int) -> None:
        path = run / METRICS
        before = path.read_text().splitlines(keepends=True) if path.exists() else []
        kept = [line for line in before if line.endswith("\n") and json.loads(line)["step"] <= step]
        aside = run / f".{METRICS}"  # a kill in between must not lose the figures
        aside.write_text("".join(kept))
        aside.replace(path)
        self._file = path.open("a", buffering=1)

    def log(self, figures: Step) -> None:
        """See Sink."""
        self._file.write(json.dumps(asdict(figures)) + "\n")

    def close(self) -> None:
        """See Sink."""
        self._file.close()


class Lines:
    """A log line every N updates."""

    def __init__(
        self, every: int, formatters: Callable[[Any], str], tell: Callable[[str], None]
    ) -> None:
        self._every, self._formatter, self._tell = every, formatters, tell

    def log(self, figures: Step) -> None:
        """See Sink."""
        if figures.step % self._every == 0:
            self._tell(self._formatter(figures))

    def close(self) -> None:
        """See Sink."""


def line(figures: Figures, frames_per_episode: float) -> str:
    """Return the log line of an update, in the words that users of LeRobot know."""
    episodes = figures.samples / frames_per_episode
    return (
        f"step:{short(figures.step)} smpl:{short(figures.samples)} ep:{short(episodes)}"
        f" epch:{figures.epoch:.2f} loss:{figures.loss:.3f} grdn:{figures.grad_norm:.3f}"
        f" lr:{figures.learning_rate:.1e} updt_s:{figures.update_s:.3f} data_s:{figures.data_s:.3f}"
    )


def short(number: float) -> str:
    """Return 6K for 6000."""
    for unit, size in (("M", 1e6), ("K", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"


class TerminalBar:
    """A progress bar on a terminal, with the newest figures below it."""

    def __init__(
        self, steps: int, begun: int, console: Console, formatters: Callable[[Any], str]
    ) -> None:
        from rich.console import Group
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
        from rich.text import Text

        columns = (BarColumn(None), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, expand=True)
        self._task = self._bar.add_task("updates", total=steps, completed=begun)
        self._text, self._formatter = Text(), formatters
        self._live = Live(Group(self._bar, self._text), console=console)
        self._live.start()

    def log(self, figures: Step) -> None:
        """See Sink."""
        self._bar.update(self._task, completed=figures.step)
        self._text.plain = self._formatter(figures)

    def close(self) -> None:
        """See Sink."""
        self._live.stop()


def below(figures: Figures) -> str:
    """Return what stands below the bar of fine-tuning."""
    return (
        f"loss {figures.loss:.3f} · grad {figures.grad_norm:.2f} · lr {figures.learning_rate:.1e}"
        f" · data {figures.data_s:.3f} s · update {figures.update_s:.3f} s ·"
        f" {short(figures.samples)} samples · epoch {figures.epoch:.2f}"
    )


class TensorBoard:
    """Event files for `tensorboard --logdir`."""

    def __init__(self, run: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Events after `step` come from a run that this one resumes before its end.
        self._writer: Any = SummaryWriter(str(run / TENSORBOARD), purge_step=step + 1)

    def log(self, figures: Step) -> None:
        """See Sink."""
        for name, value in scalars(figures).items():
            self._writer.add_scalar(f"train/{name}", value, figures.step)

    def close(self) -> None:
        """See Sink."""
        self._writer.close()


def scalars(figures: Step) -> dict[str, float]:
    """Return the figures that are plotted over the step; None is not plotted."""
    found = asdict(figures).items()
    return {name: value for name, value in found if name != "step" and value is not None}


class WandbRun:
    """A run at Weights & Biases, or on disk where it cannot be reached or WANDB_MODE=offline.

    Its files are in WANDB_DIR, otherwise in the run's folder.
    """

    def __init__(self, config: RunConfig, run: Path, run_id: str | None) -> None:
        import wandb

        try:
            known = wandb.setup().settings
        except (wandb.errors.Error, ValueError) as error:  # pydantic's too
            raise ConfigError(
                f"W&B rejects its environment variables: {shown(error)}; check the variables"
                " WANDB_…"
            ) from None
        # W&B uses the working folder if WANDB_DIR names no other.
        chosen = Path(known.root_dir) != Path.cwd()
        options: dict[str, Any] = {
            "project": config.wandb_project,
            "entity": config.logging.wandb_entity,
            "name": config.experiment_name,
            "dir": known.root_dir if chosen else str(run),
            "config": loader.flat(config),
            "id": run_id,
        }
        settings = wandb.Settings(init_timeout=INIT_S, login_timeout=INIT_S, silent=True)
        self.unreachable = None if known._offline else probe_wandb(str(known.base_url))
        if self.unreachable is None:
            try:
                self.run = wandb.init(**options, resume="allow", settings=settings)
            except wandb.errors.Error as error:
                self.unreachable = shown((str(error).splitlines() or [type(error).__name__])[0])
        if self.unreachable is not None:
            logger.warning("W&B is not available, its run stays on disk: %s", self.unreachable)
            self.run = wandb.init(**options, mode="offline", settings=settings)
        self.offline = bool(self.run.settings._offline)
        self.id: str = self.run.id
        self.folder = Path(self.run.dir).parent
        self._ending: threading.Thread | None = None

    def log(self, figures: Step) -> None:
        """See Sink."""
        self.run.log({f"train/{k}": v for k, v in scalars(figures).items()}, step=figures.step)

    def show(self, videos: Sequence[Path], step: int) -> None:
        """Show videos beside the figures of an update: a scene's, one after the other."""
        import wandb

        shown = {}
        for path in videos:
            scene, _, outcome = path.stem.rpartition("-")
            video = wandb.Video(str(path), caption=outcome, format=path.suffix[1:])
            shown[f"evaluation/{scene}"] = video
        self.run.log(shown, step=step)

    def close(self) -> None:
        """See Sink."""
        self.finish(FINISH_S)

    def finish(self, deadline_s: float) -> list[str]:
        """Close; return what W&B has not received after at most `deadline_s`."""
        if self._ending is None:
            self._ending = threading.Thread(target=self.run.finish, daemon=True)
            self._ending.start()
        self._ending.join(deadline_s)
        if not self.offline and not self._ending.is_alive():
            return []
        return [f"W&B run {self.id}: run `wandb sync {self.folder}` when W&B can be reached"]


@dataclass(frozen=True)
class StepRange:
    """The size of a run, for progress displays."""

    begun: int
    """Updates done before."""
    steps: int


@dataclass(frozen=True)
class Formatters:
    """An update's figures as text."""

    line: Callable[[Any], str]
    """In a log."""
    bar: Callable[[Any], str]
    """Below a progress bar."""


def open_tracker(
    config: RunConfig, steps: StepRange, formatters: Formatters, wandb_run: str | None, log: RunLog
) -> Tracker:
    """Return the tracker of a run's first process; `wandb_run` is the id of the run to resume.

    Where a terminal shows a progress bar instead of lines, the run's log still gets the lines.
    """
    logs, run = config.logging, config.output_dir
    sinks: list[Sink] = [MetricsFile(run, steps.begun)]
    tell: Callable[[str], None] = logger.info
    console = watched()
    if console is not None:
        sinks.append(TerminalBar(steps.steps, steps.begun, console, formatters.bar))
        tell = partial(log.tell, __name__)
    sinks.append(Lines(logs.log_steps, formatters.line, tell))
    if logs.tensorboard:
        sinks.append(TensorBoard(run, steps.begun))
    return Tracker(sinks, WandbRun(config, run, wandb_run) if logs.use_wandb else None)


def probe_wandb(url: str) -> str | None:
    """Return why W&B at `url` cannot be used now; None if it answers requests, even by refusing.

    wandb would retry a server that is down or overloaded for many minutes before training.
    """
    request = urllib.request.Request(
        f"{url}/graphql", b'{"query": "{ __typename }"}', {"Content-Type": "application/json"}
    )
    try:
        urllib.request.urlopen(request, timeout=PROBE_S).close()
    except urllib.error.HTTPError as error:
        error.close()
        if error.code >= 500:
            return f"{url} answers {error.code}"
    except OSError as error:
        return f"{url} does not answer: {shown(error)}"
    return None


class Tracker:
    """All sinks of a run; on the other processes, none."""

    def __init__(self, sinks: Sequence[Sink] = (), wandb_run: WandbRun | None = None) -> None:
        self._sinks = (*sinks, *([wandb_run] if wandb_run else ()))
        self.wandb_run = wandb_run

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for sink in self._sinks:
            sink.close()

    def finish(self, deadline_s: float) -> list[str]:
        """Close slow sinks; return what is missing after at most `deadline_s`."""
        return [] if self.wandb_run is None else self.wandb_run.finish(deadline_s)

    def log(self, figures: Step) -> None:
        """Tell every sink."""
        for sink in self._sinks:
            sink.log(figures)
