"""Batches: every frame once an epoch, the same for any number of ranks, threads and restarts."""

from __future__ import annotations

import itertools
import os
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from data_rig import FPS, SIZE, ListSource, episode

from crane_x7_vla_rl.data.episode import DataError, EpisodeError
from crane_x7_vla_rl.data.loader.batches import POLITE, Batch, Batches, LoaderOptions

SOURCE = ListSource([episode(number, 3 + number) for number in range(7)])
FRAMES = int(SOURCE.lengths.sum())


def take(batches: Batches, count: int) -> list[Batch]:
    return list(itertools.islice(batches, count))


def names(batches: list[Batch]) -> list[tuple[int, int]]:
    return [
        (int(e), int(t))
        for batch in batches
        for e, t in zip(batch.episodes, batch.frames, strict=True)
    ]


def assert_equal(one: Batch, two: Batch) -> None:
    for name in ("images", "state", "actions", "episodes", "frames", "places"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert one.instructions == two.instructions


def test_an_epoch_holds_every_frame_once_and_the_next_in_another_order() -> None:
    with Batches(SOURCE, FRAMES, seed=5) as batches:
        first, second = take(batches, 2)
        assert batches.epoch == 2
    everything = [(e, t) for e in range(len(SOURCE)) for t in range(len(SOURCE[e]))]
    assert sorted(names([first])) == sorted(names([second])) == everything
    assert names([first]) != names([second])
    assert names([first]) != everything


def test_samples_are_what_their_names_say() -> None:
    with Batches(SOURCE, 16, seed=1, options=LoaderOptions(chunk_steps=4)) as batches:
        for batch in take(batches, 6):
            for k, (e, t) in enumerate(names([batch])):
                source = SOURCE[e]
                np.testing.assert_array_equal(batch.images[k], source.image(t))
                np.testing.assert_array_equal(batch.state[k], source.state[t])
                assert batch.instructions[k] == source.instruction
                for ahead in range(4):
                    expected = source.action[min(t + ahead, len(source) - 1)]
                    np.testing.assert_array_equal(batch.actions[k, ahead], expected)


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_together_see_what_one_rank_sees(ranks: int) -> None:
    with Batches(SOURCE, 4 * ranks, seed=2) as one:
        alone = take(one, 15)
    parts = []
    for rank in range(ranks):
        with Batches(SOURCE, 4, seed=2, rank=rank, world_size=ranks) as batches:
            parts.append(take(batches, 15))
    for step, whole in enumerate(alone):
        for name in ("images", "state", "actions", "episodes", "frames", "places"):
            together = np.concatenate([getattr(part[step], name) for part in parts])
            np.testing.assert_array_equal(together, getattr(whole, name))


def test_a_resumed_run_sees_what_the_uninterrupted_one_sees() -> None:
    with Batches(SOURCE, 5, seed=3) as batches:
        take(batches, 9)
        state = batches.state_dict()
        expected = take(batches, 20)
    with Batches(SOURCE, 5, seed=3) as fresh:
        take(fresh, 2)
        fresh.load_state_dict(state)
        for one, two in zip(take(fresh, 20), expected, strict=True):
            assert_equal(one, two)
        assert fresh.place == 29 * 5


def test_another_world_size_goes_on_where_the_first_stopped() -> None:
    with Batches(SOURCE, 6, seed=3) as batches:
        take(batches, 3)
        state = batches.state_dict()
        expected = names(take(batches, 4))
    got: list[list[Batch]] = []
    for rank in range(2):
        with Batches(SOURCE, 3, seed=3, rank=rank, world_size=2) as part:
            part.load_state_dict(state)
            got.append(take(part, 4))
    assert [x for step in zip(*got, strict=True) for x in names(list(step))] == expected


def test_threads_change_nothing() -> None:
    results = []
    for workers, prefetch, cache in ((1, 1, 0), (4, 7, 0), (3, 2, 1 << 20)):
        options = LoaderOptions(workers=workers, prefetch=prefetch, cache_bytes=cache)
        with Batches(SOURCE, 8, seed=4, options=options) as batches:
            results.append(take(batches, 12))
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert_equal(one, two)


def test_seeds_give_different_orders() -> None:
    orders = set()
    for seed in range(4):
        with Batches(SOURCE, 10, seed=seed) as batches:
            orders.add(tuple(names(take(batches, 3))))
    assert len(orders) == 4


def test_a_resume_with_other_data_lists_the_differences() -> None:
    with Batches(SOURCE, 5, seed=3) as batches:
        state = batches.state_dict()
    with (
        Batches(ListSource(SOURCE.items[:6]), 5, seed=4) as other,
        pytest.raises(DataError) as caught,
    ):
        other.load_state_dict(state)
    for part in ("seed was 3, is now 4", "episodes was 7, is now 6", f"frames was {FRAMES}, is"):
        assert part in str(caught.value)


def test_the_transform_is_told_each_sample_place() -> None:
    def stamp(image: npt.NDArray[np.uint8], place: int) -> npt.NDArray[np.uint8]:
        return np.full_like(image, place)

    with Batches(SOURCE, 4, 0, 1, 2, LoaderOptions(transform=stamp)) as batches:
        for batch in take(batches, 3):
            assert (batch.images == batch.places[:, None, None, None]).all()


def test_each_picture_is_prepared_once_and_kept_small() -> None:
    seen: list[int] = []

    def corner(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        seen.append(image.nbytes)
        return image[:4, :4]

    options = LoaderOptions(workers=1, cache_bytes=FRAMES * 4 * 4 * 3, prepare=corner)
    with Batches(SOURCE, FRAMES, 0, options=options) as batches:
        first, second = take(batches, 2)
    assert len(seen) == FRAMES  # parts of 48 bytes fit, whole pictures would not
    for batch in (first, second):
        for k, (e, t) in enumerate(names([batch])):
            np.testing.assert_array_equal(batch.images[k], SOURCE[e].image(t)[:4, :4])


@pytest.mark.skipif(sys.platform != "linux", reason="niceness of threads is Linux's")
def test_decoding_threads_give_way_to_those_that_compute() -> None:
    nice: list[int] = []

    def look(image: npt.NDArray[np.uint8], _: int) -> npt.NDArray[np.uint8]:
        nice.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return image

    mine = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    with Batches(SOURCE, 4, 0, options=LoaderOptions(transform=look)) as batches:
        next(batches)
    assert set(nice) == {min(mine + POLITE, 19)}
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == mine


def test_pictures_of_different_sizes_are_named() -> None:
    mixed = ListSource([episode(0), episode(1, size=(20, 20))])
    with (
        Batches(mixed, 12, seed=0) as batches,
        pytest.raises(DataError, match=r"rig: images differ in size: .*\(20, 20, 3\) in epi"),
    ):
        next(batches)


def broken(number: int, t: int = 1) -> ListSource:
    """SOURCE, with a frame of one episode that is no picture."""
    items = list(SOURCE.items)
    images = list(items[number].images)
    images[t] = b"\xff\xd8 cut off"
    items[number] = replace(items[number], images=images)
    return ListSource(items)


def test_a_broken_picture_names_its_episode_and_frame() -> None:
    with (
        Batches(broken(4), FRAMES, seed=0) as batches,
        pytest.raises(EpisodeError, match="rig episode 4: images frame 1: JPEG of"),
    ):
        next(batches)


def test_a_broken_picture_gives_way_to_the_same_frame_everywhere() -> None:
    results = []
    for workers, ranks in ((1, 1), (4, 2)):
        options = LoaderOptions(corrupt="skip", workers=workers)
        parts = []
        for rank in range(ranks):
            size = FRAMES * 2 // ranks
            with Batches(broken(4), size, 0, rank, ranks, options) as batches:
                parts.append(names(take(batches, 2)))
                assert list(batches.broken) == [4]
                assert "frame 1" in batches.broken[4]
        results.append(sorted(itertools.chain(*parts)))
    assert results[0] == results[1]
    assert (4, 1) not in results[0]
    assert results[0].count((5, 1)) == 8


def test_a_data_set_mostly_broken_ends_the_run() -> None:
    items = [broken(number, 0)[number] for number in range(7)]
    options = LoaderOptions(workers=1, corrupt="skip")  # several count at once
    with (
        Batches(ListSource(items), FRAMES, 0, options=options) as batches,
        pytest.raises(DataError, match="2 of 7 episodes are broken"),
    ):
        next(batches)


def test_no_episodes_and_no_sense_are_refused() -> None:
    with pytest.raises(DataError, match="holds no episodes"):
        Batches(ListSource([]), 4, 0)
    with pytest.raises(ValueError, match="rank 2 of 2"):
        Batches(SOURCE, 4, 0, 2, 2)
    with pytest.raises(ValueError, match="chunk_steps is 0"):
        LoaderOptions(chunk_steps=0)


def test_closing_leaves_no_thread() -> None:
    before = threading.active_count()
    batches = Batches(SOURCE, 4, 0, options=LoaderOptions(workers=3))
    take(batches, 2)
    assert threading.active_count() > before
    batches.close()
    assert threading.active_count() == before


def test_batches_of_a_dataset_on_disk_are_those_of_its_episodes(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs the train extra")
    from crane_x7_vla_rl.data.lerobot import LeRobotWriter, open_lerobot

    with LeRobotWriter(tmp_path, FPS, SIZE) as writer:
        for item in SOURCE.items:
            writer.add(item)
    options = LoaderOptions(workers=3, cache_bytes=10_000)
    with (
        Batches(SOURCE, 8, 9) as memory,
        Batches(open_lerobot(tmp_path), 8, 9, 0, 1, options) as disk,
    ):
        for one, two in zip(take(memory, 12), take(disk, 12), strict=True):
            np.testing.assert_array_equal(one.state, two.state)
            np.testing.assert_array_equal(one.actions, two.actions)
            assert one.instructions == two.instructions
            assert np.abs(one.images.astype(int) - two.images).max() <= 12
