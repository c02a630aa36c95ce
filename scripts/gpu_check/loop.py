"""infer with a model against a simulated robot, as a user runs both. Rates → figures."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

from sft_bench.figures import Figures

from gpu_check.parts import Options

SECONDS: Final = 15.0
TINY_S: Final = 4.0
START_S: Final = 50.0
"""Longest time until infer is ready to drive."""
LEAST_SHARE: Final = 0.95
"""Of the requested rate, or of the one that the policy's time allows, whichever is lower."""


@contextmanager
def robot() -> Iterator[int]:
    """Yield the port of a kinematic robot, which ends afterwards."""
    command = ["sim-robot", "--arm", "kinematic", "--port", "0"]
    process = subprocess.Popen(
        [sys.executable, "-m", "crane_x7_remote", *command], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        port = re.search(r"port (\d+)", line)
        if port is None:
            raise RuntimeError(f"sim-robot said {line.strip()!r}, expected its port")
        yield int(port[1])
    finally:
        process.terminate()
        process.wait(20)


def drive(options: Options, rate_hz: float, metrics: Path) -> float:
    """Run infer; return the seconds from its start until it ended."""
    seconds = TINY_S if options.tiny else SECONDS
    with robot() as port:
        started_s = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "crane_x7_remote", "infer", "--vla-policy", "openvla",
             "--vla-model-path", str(options.model), "--vla-device", options.device,
             "--vla-inference-rate", str(rate_hz), "--rosbridge-host", "127.0.0.1",
             "--rosbridge-port", str(port), "--vla-task-instruction", "lift the red cube",
             "--policy-timeout", "5", "--duration", str(seconds), "--metrics", str(metrics)],
            check=False, timeout=seconds + START_S,
        )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"infer ended with exit code {done.returncode}; see above")
    return time.perf_counter() - started_s


def at(rate_hz: float, figures: Figures, options: Options) -> None:
    """Drive at a rate and write its figures."""
    path = options.scratch / f"loop-{rate_hz:g}.metrics.json"
    taken_s = drive(options, rate_hz, path)
    report(figures, json.loads(path.read_text()), rate_hz, taken_s)


def report(figures: Figures, found: dict[str, Any], rate_hz: float, taken_s: float) -> None:
    """Write the figures of one run's metrics."""
    policy = found["policy_ms"]
    allowed = min(rate_hz, 1e3 / policy["mean"]) if policy["mean"] else rate_hz
    rate = found["trajectory_rate_hz"] or 0.0
    figures.row("rate of trajectories", rate, "Hz")
    figures.row("rate that the policy's mean time allows", allowed, "Hz")
    figures.row("rate, as a share of that", rate / allowed, "", at_least=LEAST_SHARE)
    if rate_hz == 30:
        figures.row("rate, with the H200's target", rate, "Hz", at_least=27.0)
    for name, key in (("policy", "policy_ms"), ("frame to trajectory", "latency_ms"),
                      ("without the policy", "latency_without_policy_ms"),
                      ("lateness", "lateness_ms")):  # fmt: skip
        for share in ("p50", "p99"):
            if found[key][share] is not None:
                figures.row(f"{name}, {share}", found[key][share], "ms")
    figures.row("trajectories", found["trajectories"], "")
    figures.row("ticks that held", sum(found["holds"].values()), "ticks")
    figures.row("warm-up of the policy", found["warm_up_s"] or 0.0, "s")
    figures.row("start to end", taken_s, "s")


at_10_hz = partial(at, 10.0)
at_30_hz = partial(at, 30.0)
