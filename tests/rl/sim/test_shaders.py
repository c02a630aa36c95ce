"""The shaders without SAPIEN's table: the same pictures, and the usual ones where it cannot be."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sapien
from mani_skill.render import PREBUILT_SHADER_CONFIGS

from crane_x7_vla_rl import sim
from crane_x7_vla_rl.sim import generated, shaders
from crane_x7_vla_rl.sim.errors import SimError
from crane_x7_vla_rl.sim.scene import CAMERAS

USUAL = {"shader_pack": "minimal"}


def pictures(env: Any) -> list[np.ndarray]:
    """What all cameras see of two episodes, the one for people included."""
    seen = []
    for seed in (1, 2):
        env.reset(seed=seed)
        rng = np.random.default_rng(seed)
        for _ in range(5):
            observed, *_ = env.step(rng.uniform(-1, 1, env.action_space.shape).astype(np.float32))
            seen += [observed["sensor_data"][name]["rgb"].numpy() for name in sorted(CAMERAS)]
        seen.append(env.render().numpy())
    return seen


@pytest.mark.parametrize(
    "task", [pytest.param(sim.LIFT_ID, marks=pytest.mark.slow), sim.PICK_PLACE_ID]
)
def test_pictures_are_those_of_sapiens_own_shaders(task: str) -> None:
    found = []
    for options in ({}, {"sensor_configs": USUAL, "human_render_camera_configs": USUAL}):
        env = sim.make(
            task, cameras=CAMERAS, image_size=(96, 96), render_mode="rgb_array", **options
        )
        packs = {
            camera.config.shader_config.shader_pack
            for cameras in (env.unwrapped._sensors, env.unwrapped._human_render_cameras)
            for camera in cameras.values()
        }
        assert len(packs) == 1
        assert ("minimal" in packs) == bool(options), "the same shaders prove nothing"
        found.append(pictures(env))
        env.close()
    ours, theirs = found
    assert len(ours) == len(theirs) == 2 * (5 * len(CAMERAS) + 1)
    assert all(np.array_equal(one, two) for one, two in zip(ours, theirs, strict=True))
    assert min(picture.std() for picture in ours) > 5, "there is something to see"


def test_no_shader_of_ours_names_the_table() -> None:
    folder = Path(shaders.without_table().shader_pack)
    assert folder.is_absolute()
    texts = [path.read_text() for path in folder.parent.rglob("*.*")]
    assert len(texts) == sum(
        len(list((folder.parent / name).iterdir())) for name in ("minimal", "common")
    )
    assert not any("samplerBRDFLUT" in text for text in texts)


def test_shaders_of_another_sapien_stay_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = Path(sapien.__file__).parent / "vulkan_shader"
    for name in shaders.FOLDERS:
        shutil.copytree(theirs / name, tmp_path / "vulkan_shader" / name)
    changed = tmp_path / "vulkan_shader" / "minimal" / "gbuffer.frag"
    text = changed.read_text()
    assert "texture(samplerBRDFLUT" in text
    changed.write_text(text.replace("texture(samplerBRDFLUT", "textureLod(samplerBRDFLUT"))
    monkeypatch.setattr(sapien, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setattr(shaders, "_pack", shaders._pack.__wrapped__)
    assert shaders.without_table() is PREBUILT_SHADER_CONFIGS["minimal"]


def test_a_generated_file_is_written_once_and_again_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generated.tempfile, "tempdir", str(tmp_path))
    path = generated.write("a-1/b.txt", "first")
    assert path.read_text() == "first"
    assert path.parents[1].stat().st_mode & 0o777 == 0o700, "nobody else writes there"
    assert generated.write("a-1/b.txt", "other").read_text() == "first"
    path.unlink()
    assert generated.write("a-1/b.txt", "other") == path
    assert path.read_text() == "other"
    assert [found.name for found in path.parent.iterdir()] == ["b.txt"]


def test_a_folder_that_somebody_else_made_is_not_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generated.tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(generated.os, "getuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(SimError, match=r"crane_x7-\d+: it belongs to another user\. Free space"):
        generated.write("a-1.txt", "text")
    assert list(tmp_path.rglob("*.txt")) == []


def test_a_temporary_folder_that_takes_nothing_is_named_not_the_graphics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"crane_x7-{os.getuid()}").write_text("no folder")
    monkeypatch.setattr(generated.tempfile, "tempdir", str(tmp_path))
    with pytest.raises(SimError, match=r"cannot be written to .*File exists.*TMPDIR") as caught:
        sim.make(sim.LIFT_ID)
    assert "Vulkan" not in str(caught.value)
