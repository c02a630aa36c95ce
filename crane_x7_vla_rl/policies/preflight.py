"""Problems of a policy's device and model, before torch is imported or weights are fetched.

`ModelOptions` and the flags or variables that set them → one line per problem. The checks take
milliseconds for a folder and a few requests for a Hub id; problems of the weights are found while
they load.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final

from crane_x7_vla_rl.policies import cuda_devices
from crane_x7_vla_rl.policies.base import ModelOptions, PolicyLoadError


@dataclass(frozen=True)
class OptionNames:
    """The flags or variables that set the options, for messages."""

    path: str = "VLA_MODEL_PATH"
    device: str = "VLA_DEVICE"
    unnorm_key: str = "VLA_UNNORM_KEY"
    server: str = "POLICY_SERVER"
    api_key: str = "POLICY_API_KEY"
    policy_io: str = "POLICY_IO"


INFER: Final = OptionNames()
PACKAGES: Final = ("torch", "safetensors", "tokenizers", "huggingface_hub")


def check(options: ModelOptions, names: OptionNames = INFER) -> None:
    """Raise PolicyLoadError with all problems."""
    missing = missing_packages(PACKAGES)
    if missing:
        raise PolicyLoadError(
            f"{names.path}={options.path}: policy 'openvla' needs the"
            f" package{'s' * (len(missing) > 1)} {', '.join(missing)}: pip install"
            " 'crane-x7-remote[train]', or build the image without EXTRAS="
        )
    found = [*cuda_devices.problems(options.device, names.device), *model_problems(options, names)]
    if len(found) == 1:
        raise found[0]
    if found:
        lines = "".join(f"\n  - {error}" for error in found)
        raise PolicyLoadError(f"{len(found)} problems; nothing was loaded:{lines}")


def missing_packages(names: Iterable[str]) -> list[str]:
    """Return those that cannot be imported, without importing any."""
    return [name for name in names if find_spec(name) is None]


def model_problems(options: ModelOptions, names: OptionNames = INFER) -> list[PolicyLoadError]:
    """Return the problems that a checkpoint's small files show: missing, disk too small, another
    architecture, no statistics."""
    from crane_x7_vla_rl.policies.openvla import keys
    from crane_x7_vla_rl.policies.openvla.errors import CheckpointError
    from crane_x7_vla_rl.policies.openvla.weights import layout as layouts

    assert options.path is not None
    try:
        layout = layouts.peek(options.path, token=options.token)
        known = layouts.raw_statistics(layout)
    except PolicyLoadError as error:
        return [type(error)(f"{names.path}: {error}")]
    if (other := layouts.other_architecture(layout)) is not None:
        return [other]
    found: list[PolicyLoadError] = []
    if options.unnorm_key not in known:
        said = keys.refusal(options.path, known, options.unnorm_key, names.unnorm_key)
        found.append(CheckpointError(said))
    if layout.first(layouts.TOKENIZER) is None:
        found.append(layouts.no_tokenizer(layout))
    return found
