"""Damages tiny LeRobot checkpoints and says what our loader answers; runs in LeRobot's environment.

    python tests/rigs/lerobot_damaged.py FOLDER

prints a JSON object: name of the case → the error's text, or what came of it. One process for all
cases, because LeRobot takes seconds to import.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import lerobot_tiny
import numpy as np
import torch
from safetensors.torch import load_file, save_file

from crane_x7_remote.errors import PolicyError
from crane_x7_remote.lerobot.loading import load
from crane_x7_remote.lerobot.predictor import Predictor
from crane_x7_vla_rl.robot import HOME_RAD

HEAD = "model.paligemma_with_expert.paligemma.lm_head.weight"
EMBEDDING = "model.paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight"
IMAGE = "observation.images.base"


def request(**changes: object) -> dict[str, object]:
    """An observation as the loop sends it; a change to None leaves the key out."""
    image = np.zeros((64, 96, 3), np.uint8)
    state = HOME_RAD.astype(np.float32)
    made = {IMAGE: image, "observation.state": state, "task": "lift", **changes}
    return {key: value for key, value in made.items() if value is not None}


def said(work) -> str:
    """The text of the PolicyError that `work` raises."""
    try:
        return f"no error: {work()}"
    except PolicyError as error:
        return str(error)


class Cases:
    """Every method is a case; its argument is a fresh copy of a checkpoint."""

    def act_truncated(self, folder: Path) -> str:
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-1000])
        return said(lambda: load(folder, "cpu"))

    def act_empty(self, folder: Path) -> str:
        (folder / "model.safetensors").write_bytes(b"")
        return said(lambda: load(folder, "cpu"))

    def act_zero_bytes(self, folder: Path) -> str:
        path = folder / "model.safetensors"
        path.write_bytes(bytes(path.stat().st_size))
        return said(lambda: load(folder, "cpu"))

    def act_zero_weights(self, folder: Path) -> str:
        return self._rewrite(folder, lambda state: {k: v * 0 for k, v in state.items()})

    def act_nan(self, folder: Path) -> str:
        def damage(state):
            next(iter(state.values())).view(-1)[0] = float("nan")
            return state

        return self._rewrite(folder, damage)

    def act_renamed_keys(self, folder: Path) -> str:
        return self._rewrite(
            folder, lambda state: {k.replace("encoder", "coder"): v for k, v in state.items()}
        )

    def act_missing_keys(self, folder: Path) -> str:
        return self._rewrite(
            folder, lambda state: {k: v for k, v in state.items() if "action_head" not in k}
        )

    def act_other_shape(self, folder: Path) -> str:
        return self._rewrite(
            folder,
            lambda state: {k: v[:1] if "action_head.w" in k else v for k, v in state.items()},
        )

    def pi0_renamed_keys(self, folder: Path) -> str:
        return self._rewrite(
            folder,
            lambda state: {
                k.replace("vision_tower.vision_model", "vision"): v for k, v in state.items()
            },
        )

    def pi0_head_and_embedding(self, folder: Path) -> str:
        state = load_file(folder / "model.safetensors")
        name = EMBEDDING if EMBEDDING in state else HEAD
        embedding = torch.randn_like(state.pop(name))
        head = torch.randn_like(embedding)
        save_file({**state, EMBEDDING: embedding, HEAD: head}, folder / "model.safetensors")
        policy = load(folder, "cpu").policy
        return "embedding" if torch.equal(policy.state_dict()[EMBEDDING], embedding) else "head"

    def pi0_image_missing(self, folder: Path) -> str:
        return self._ask(folder, **{IMAGE: None})

    def pi0_image_matters(self, folder: Path) -> str:
        """Two images, same noise: the answers differ, so the image is seen."""
        predictor = Predictor(load(folder, "cpu"))
        answers = []
        for grey in (0, 255):
            torch.manual_seed(0)
            image = np.full((64, 96, 3), grey, np.uint8)
            answers.append(predictor.answer([request(**{IMAGE: image})])[0]["actions"])
        return str(not np.array_equal(*answers))

    def act_other_size(self, folder: Path) -> str:
        return self._ask(folder, **{IMAGE: np.zeros((48, 64, 3), np.uint8)})

    def act_state_nan(self, folder: Path) -> str:
        return self._ask(folder, **{"observation.state": np.full(8, np.nan, np.float32)})

    def act_state_shape(self, folder: Path) -> str:
        return self._ask(folder, **{"observation.state": np.zeros(7, np.float32)})

    def act_no_statistics(self, folder: Path) -> str:
        (path,) = folder.glob("policy_postprocessor_step_*.safetensors")
        save_file({k: v for k, v in load_file(path).items() if "std" not in k}, path)
        return said(lambda: load(folder, "cpu"))

    def act_other_config(self, folder: Path) -> str:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"from_the_future": 1}))
        return said(lambda: load(folder, "cpu"))

    def pi05_still_joint(self, folder: Path) -> str:
        """A joint with q01 = q99 in training, moved a little: the input stays near training's."""
        for path in folder.glob("policy_p*_step_*normalizer*.safetensors"):
            state = load_file(path)
            for name in ("observation.state", "action"):
                state[f"{name}.q99"][3] = state[f"{name}.q01"][3]
            save_file(state, path)
        loaded = load(folder, "cpu")
        (step,) = (step for step in loaded.before.steps if hasattr(step, "norm_map"))
        value = torch.from_numpy(HOME_RAD.astype(np.float32))
        value[3] += 0.01
        normal = step._apply_transform(
            value, "observation.state", step.features["observation.state"].type
        )
        moved = HOME_RAD.astype(np.float32)
        moved[3] += 0.01
        got = Predictor(loaded).answer([request(**{"observation.state": moved})])[0]["actions"]
        still = float(step.stats["action"]["q01"][3])
        return json.dumps({
            "normalized": float(normal[3]), "finite": bool(np.isfinite(got).all()),
            "off": float(np.abs(got[:, 3] - still).max()),
        })  # fmt: skip

    def smolvla_guided(self, folder: Path) -> str:
        """With the previous chunk's rest, the same noise leads nearer to it."""
        predictor = Predictor(load(folder, "cpu"))
        rest = np.tile(HOME_RAD.astype(np.float32) + 0.01, (6, 1))
        off = []
        for extra in ({}, {"rtc/previous": rest, "rtc/delay_steps": 3}):
            torch.manual_seed(0)
            got = predictor.answer([request(**extra)])[0]["actions"]
            off.append(float(np.abs(got[:3] - rest[:3]).mean()))
        return json.dumps(off)

    def smolvla_wrong_rest(self, folder: Path) -> str:
        return self._ask(folder, **{"rtc/previous": np.zeros((3, 5), np.float32)})

    def _ask(self, folder: Path, **changes: object) -> str:
        predictor = Predictor(load(folder, "cpu"))
        return said(lambda: predictor.answer([request(**changes)]))

    def _rewrite(self, folder: Path, change) -> str:
        path = folder / "model.safetensors"
        state = change(load_file(path))
        save_file({key: value.contiguous() for key, value in state.items()}, path)
        return said(lambda: load(folder, "cpu"))


def main() -> None:
    folder = Path(sys.argv[1])
    answers = {}
    cases = Cases()
    for kind in ("act", "smolvla", "pi0", "pi05"):
        original = lerobot_tiny.make(kind, folder / kind)
        for name in sorted(name for name in dir(cases) if name.startswith(kind + "_")):
            copy = folder / name
            shutil.copytree(original, copy)
            answers[name] = getattr(cases, name)(copy)
            shutil.rmtree(copy)
    (folder / "answers.json").write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
