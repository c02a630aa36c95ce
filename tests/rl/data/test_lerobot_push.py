"""What `--push` refuses before anything is recorded, and before anything is sent."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("huggingface_hub", reason="needs the train extra")

from crane_x7_vla_rl.data.episode import DataError
from crane_x7_vla_rl.data.lerobot import push


@pytest.mark.parametrize("name", ["data", "a/b/c", "", "own er/data"])
def test_a_name_that_is_no_repository_is_refused(name: str) -> None:
    with pytest.raises(DataError, match="is no repository, expected owner/name"):
        push.check(name)


def test_without_a_token_it_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(DataError, match="owner/data: no token; set HF_TOKEN"):
        push.check("owner/data")


def test_a_folder_without_a_data_set_is_not_sent(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no data set"):
        push.push(tmp_path, "owner/data")
