"""A kernel that does not run loses its place for one shape, and the log says so once."""

from __future__ import annotations

import logging

import pytest
import torch

from crane_x7_vla_rl.policies.openvla.trials import KernelError, Trials, require_close

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)


def fail() -> None:
    raise RuntimeError("ptxas died\n" + "of old age " * 1000)


def test_a_failure_counts_for_its_shape_alone_and_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    trials = Trials()
    with caplog.at_level(logging.WARNING):
        assert [trials.passed("turn", (24,), CPU, fail) for _ in range(3)] == [False] * 3
        assert trials.passed("turn", (128,), CPU, lambda: None)
        assert trials.passed("gated", (24,), CPU, lambda: None)
    assert len(caplog.messages) == 1
    for said in ("turn", "cpu", "(24,)", "RuntimeError: ptxas died of old age", "C compiler"):
        assert said in caplog.messages[0]
    assert len(caplog.messages[0]) < 600


def test_a_success_is_tried_once() -> None:
    tried: list[int] = []
    trials = Trials()
    assert all(trials.passed("turn", 1, CPU, lambda: tried.append(1)) for _ in range(3))
    assert tried == [1]


def test_nothing_is_tried_during_a_capture_and_no_verdict_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    trials = Trials()
    assert not trials.passed("turn", 1, CUDA, lambda: None)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert trials.passed("turn", 1, CUDA, lambda: None)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert trials.passed("turn", 1, CUDA, fail)


def test_too_little_memory_says_nothing_about_a_kernel() -> None:
    def full() -> None:
        raise torch.OutOfMemoryError("no room")

    trials = Trials()
    with pytest.raises(torch.OutOfMemoryError):
        trials.passed("turn", 1, CPU, full)
    assert trials.passed("turn", 1, CPU, lambda: None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_result_is_an_error_and_rounding_is_not(dtype: torch.dtype) -> None:
    right = torch.linspace(-3, 3, 50).to(dtype)
    require_close(right, right * (1 + torch.finfo(dtype).eps))
    for wrong in (right.roll(1), right + torch.nan):
        with pytest.raises(KernelError, match="differs by"):
            require_close(wrong, right)
