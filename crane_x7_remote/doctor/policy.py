"""Group `policy`: the chosen model, its statistics and memory, a policy server, LeRobot."""

from __future__ import annotations

import math
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from crane_x7_remote.doctor import child
from crane_x7_remote.doctor.child import ChildError
from crane_x7_remote.doctor.finding import (
    Check,
    Context,
    Finding,
    Stop,
    failure,
    ok,
    skipped,
    warning,
)
from crane_x7_remote.doctor.gpu import cards, has_gpu
from crane_x7_remote.doctor.places import free_memory_bytes
from crane_x7_remote.errors import PolicyError, SettingsError
from crane_x7_remote.policy_server import choice
from crane_x7_remote.policy_server.client import PolicyClient, PolicyServerError
from crane_x7_vla_rl import lerobot_env
from crane_x7_vla_rl.policies import hub, lerobot_folder, preflight
from crane_x7_vla_rl.policies.base import PolicyLoadError

SHARE: Final = 1.15
"""Memory of a loaded model, with its activations, as a share of its weights."""
CONNECT_S: Final = 10.0
PACKAGES: Final = "pip install 'crane-x7-remote[train]'"
LEROBOT_PROGRAM: Final = (
    "import json, lerobot, torch;"
    f"print({child.MARK!r} + json.dumps([lerobot.__version__, torch.__version__]))"
)


def _name(context: Context) -> str:
    """Return the chosen policy; ends the check if there is none."""
    settings = context.settings
    if not context.is_set("vla_policy", "vla_model_path", "policy_server"):
        raise Stop(skipped("no policy is set (VLA_MODEL_PATH, POLICY_SERVER or VLA_POLICY)"))
    try:
        return context.once("policy name", lambda: choice.policy_name(settings))
    except (SettingsError, PolicyError) as error:
        cure = "unset POLICY_SERVER" if isinstance(error, SettingsError) else _look(context)
        raise Stop(failure(str(error), cure)) from error


def _path(context: Context) -> str:
    """Return the model's folder or Hub id; ends the check for policies without one."""
    name = _name(context)
    path = context.settings.vla_model_path
    if name in ("color-servo", "remote") or path is None:
        raise Stop(skipped(f"policy {name} has no model on this machine"))
    return path


def _look(context: Context) -> str:
    path = context.settings.vla_model_path or ""
    folder = Path(path).expanduser()
    if folder.exists() or path.startswith(("/", ".", "~")):
        return f"ls -l {path}"
    return f"hf download --dry-run {path.partition('@')[0]}"


def _problems(context: Context) -> list[PolicyLoadError]:
    """Return what is wrong with the model, statistics and all."""
    options = choice.model_options(context.settings)
    if missing := preflight.missing_packages(preflight.PACKAGES):
        raise Stop(failure(f"packages are missing: {', '.join(missing)}", PACKAGES))
    return context.once("model", lambda: preflight.model_problems(options))


def _is_about_the_key(error: PolicyLoadError) -> bool:
    return "has no statistics under this key" in str(error)


def model(context: Context) -> Finding:
    """Whether the model is there, readable and whole, or can be fetched from the Hub."""
    path = _path(context)
    folder = Path(path).expanduser()
    if _name(context) == "lerobot":
        return _lerobot_model(context, path)
    wrong = [error for error in _problems(context) if not _is_about_the_key(error)]
    if wrong:
        return failure("; ".join(map(str, wrong)), _look(context))
    return _whole(folder, context) if folder.is_dir() else ok(f"{path} is on the Hub or cached")


def _whole(folder: Path, context: Context) -> Finding:
    files = sorted(folder.glob("*.safetensors"))
    for file in files:
        if problem := lerobot_folder.weights_problem(file):
            return failure(f"{folder}: {problem}", _look(context))
    size = sum(file.stat().st_size for file in files)
    return ok(f"{folder} is readable, {size / 1e6:.0f} MB of weights")


def _lerobot_model(context: Context, path: str) -> Finding:
    folder = Path(path).expanduser()
    if not folder.is_dir():
        try:
            hub.peek(
                path, token=choice.model_options(context.settings).token, names=["config.json"]
            )
        except PolicyLoadError as error:
            return failure(str(error), _look(context))
        return ok(f"{path} is on the Hub or cached, a LeRobot policy")
    found = lerobot_folder.find(folder) or folder
    if missing := lerobot_folder.missing(found):
        return failure(f"{found}: {'; '.join(missing)}", _look(context))
    return ok(f"{found} is a whole LeRobot policy")


def statistics(context: Context) -> Finding:
    """Whether the model has statistics under VLA_UNNORM_KEY."""
    _path(context)
    if _name(context) == "lerobot":
        return skipped("a LeRobot policy brings its own statistics")
    problems = _problems(context)
    for error in problems:
        if _is_about_the_key(error):
            return failure(str(error), "unset VLA_UNNORM_KEY")
    if problems:
        return skipped("the model cannot be read; see model")
    return ok(f"the model has statistics under {context.settings.vla_unnorm_key}")


def memory(context: Context) -> Finding:
    """Whether the model fits into the memory of its device."""
    path = _path(context)
    on_gpu = has_gpu() and not context.settings.vla_device.startswith("cpu")
    need = _need_bytes(context, path, on_gpu)
    if need is None:
        return skipped("the model's size is unknown; see model")
    where, free, cure = _free(context, on_gpu)
    if free is None:
        return skipped(f"{where} is unknown")
    said = f"{need / 1e9:.2f} GB needed, {free / 1e9:.1f} GB of {where} free"
    if need > free:
        return failure(said, cure)
    return ok(said)


def _free(context: Context, on_gpu: bool) -> tuple[str, float | None, str]:
    if not on_gpu:
        return "memory", free_memory_bytes(), "free -h"
    number = context.settings.vla_device.partition(":")[2]
    try:
        found = cards(context)
    except ChildError:
        found = []
    index = int(number or 0)
    free = found[index].free_mb * 2**20 if index < len(found) else None
    return "the GPU's memory", free, "nvidia-smi"


def _need_bytes(context: Context, path: str, on_gpu: bool) -> float | None:
    """Return the bytes of the loaded weights: 2 per parameter on a GPU, 4 on a CPU."""
    folder = Path(path).expanduser()
    if _name(context) == "lerobot" or not folder.is_dir():
        size = _stored_bytes(context, path)
        return None if size is None else size * SHARE * (1 if on_gpu else 2)
    from crane_x7_vla_rl.policies.openvla.errors import CheckpointError
    from crane_x7_vla_rl.policies.openvla.weights import files

    try:
        tensors = files.stored_tensors(folder)
    except CheckpointError:
        return None
    count = sum(math.prod(each.shape) for each in tensors.values())
    return count * SHARE * (2 if on_gpu else 4)


def _stored_bytes(context: Context, path: str) -> int | None:
    """Return the size of the weights' files, which usually have 2 bytes per parameter."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        found = lerobot_folder.find(folder) or folder
        return sum(file.stat().st_size for file in found.glob("*.safetensors")) or None
    match = hub.REPO_ID.fullmatch(path)
    if match is None or find_spec("huggingface_hub") is None:
        return None
    token = choice.model_options(context.settings).token
    source = hub.Source(match["name"], match["revision"] or "main", token)
    try:
        info = hub.look_up(source)
    except (hub.Unreachable, hub.HubError):
        return None
    sizes = [each.size or 0 for each in info.siblings or () if each.rfilename.endswith("tensors")]
    return sum(sizes) or None


def server(context: Context) -> Finding:
    """Whether the policy server answers, and takes our key."""
    settings = context.settings
    if settings.policy_server is None:
        return skipped("POLICY_SERVER is not set")
    options = choice.model_options(settings)
    started_s = time.monotonic()
    try:
        client = PolicyClient(
            settings.policy_server,
            options.api_key,
            min(CONNECT_S, context.left_s),
            proxy=settings.policy_proxy,
        )
        try:
            metadata = client.metadata
        finally:
            client.close()
    except PolicyServerError as error:
        cure = "crane-x7-remote serve-policy --help"
        if "refused the API key" in str(error):
            cure = "read -rs POLICY_API_KEY && export POLICY_API_KEY"
        return failure(str(error), cure)
    took_ms = (time.monotonic() - started_s) * 1000
    names = ", ".join(sorted(map(str, metadata))) or "nothing"
    return ok(f"{client.url} answered in {took_ms:.0f} ms and states {names}")


def lerobot(context: Context) -> Finding:
    """Whether LeRobot's environment has the version that this project knows, and can be used."""
    settings = context.settings
    needed = settings.lerobot_venv is not None
    if context.is_set("vla_policy", "vla_model_path"):
        needed = needed or _name(context) == "lerobot"
    try:
        python = lerobot_env.interpreter(settings.lerobot_venv)
    except lerobot_env.LerobotEnvError as error:
        if not needed:
            return skipped("LeRobot's environment is not used: no LeRobot policy is set")
        return failure(str(error), f"{lerobot_env.SETUP} --force")
    try:
        found = child.run((str(python), "-c", LEROBOT_PROGRAM), context.left_s)
    except ChildError as error:
        report = failure if needed else warning
        return report(f"{python} cannot use LeRobot: {error}", f"{lerobot_env.SETUP} --force")
    versions = " and torch ".join(found)
    return ok(f"{python}: LeRobot {versions}")


CHECKS = tuple(
    Check("policy", function.__name__, function)
    for function in (model, statistics, memory, server, lerobot)
)
