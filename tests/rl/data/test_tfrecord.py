"""Episodes from TFRecord files: what the logger and tfds write, and every way it can be broken."""

from __future__ import annotations

import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tfrecord_rig import (
    Value,
    crc32c,
    example,
    framed,
    logger_steps,
    picture,
    rlds_episode,
    sequence_example,
    walk,
    write,
    write_log,
)

from crane_x7_vla_rl.data.episode import DataError, EpisodeError
from crane_x7_vla_rl.data.source import open_source
from crane_x7_vla_rl.data.tfrecord.source import open_tfrecord

DEFAULT = "do what the log does not tell"


def open_logs(path: Path):
    return open_tfrecord(path, instruction=DEFAULT)


def test_encoder_of_these_tests_knows_the_published_check_value():
    assert crc32c(b"123456789") == 0xE3069283  # RFC 3720, appendix B.4


def test_a_folder_of_the_logger_is_one_episode_per_file(tmp_path):
    for number, steps in enumerate((6, 4)):
        write_log(tmp_path, number, logger_steps(steps, seed=number))
    source = open_logs(tmp_path)
    assert source.lengths.tolist() == [6, 4]
    assert (source.fps, source.name) == (30.0, str(tmp_path))
    episode = source[1]
    np.testing.assert_array_equal(episode.state, walk(4, 1)[:-1])
    np.testing.assert_array_equal(episode.action, walk(4, 1)[1:])
    assert episode.instruction == "pick up the red cube"
    assert (episode.success, episode.seed) == (None, None)
    assert "episode_0001" in episode.source


def test_pictures_come_as_they_were_shown(tmp_path):
    write_log(tmp_path, 0, logger_steps(3))
    image = open_logs(tmp_path)[0].image(2)
    assert image.shape == (24, 32, 3)
    assert abs(int(image[2, 16, 0]) - 200) < 12
    assert abs(int(image[2, 16, 1]) - 20) < 12
    assert image[2, 16, 2] < 12


def test_swapped_logs_are_put_right_by_an_option_beside_them(tmp_path):
    write_log(tmp_path, 0, logger_steps(3))
    (tmp_path / "reader.yaml").write_text("swap_red_blue: true\nfps: 10\n")
    source = open_logs(tmp_path)
    image = source[0].image(2)
    assert image[2, 16, 2] > 180
    assert image[2, 16, 0] < 12
    assert len(source[0].images[0:2]) == 2
    assert source.fps == 10.0


def test_older_names_and_a_missing_instruction_are_read(tmp_path):
    joints = walk(4)
    steps = [
        {
            "observation/state": joints[step],
            "observation/timestamp": [0.1 * step],
            "observation/image": [picture(0)],
            "observation/image/height": [24],
            "action": joints[step + 1],
        }
        for step in range(4)
    ]
    write_log(tmp_path, 0, steps)
    source = open_logs(tmp_path)
    assert source[0].instruction == DEFAULT
    assert source.fps == pytest.approx(10)


def test_seconds_since_1970_in_a_float_list_tell_no_rate(tmp_path):
    steps = [
        step | {"observation/timestamp": [1.7e9 + 0.1 * number]}
        for number, step in enumerate(logger_steps())
    ]
    write_log(tmp_path, 0, steps)
    assert open_logs(tmp_path).fps == 30.0


def test_rlds_episodes_are_records_with_their_steps_strung_together(tmp_path):
    write(
        tmp_path / "crane_x7-train.tfrecord-00000-of-00002",
        [rlds_episode(5, seed=0), rlds_episode(3, seed=1)],
    )
    write(tmp_path / "crane_x7-train.tfrecord-00001-of-00002", [rlds_episode(4, seed=2)])
    write(tmp_path / "crane_x7-val.tfrecord-00000-of-00001", [rlds_episode(7, seed=3)])
    source = open_logs(tmp_path)
    assert source.lengths.tolist() == [5, 3, 4]
    episode = source[2]
    np.testing.assert_array_equal(episode.state, walk(4, 2)[:-1])
    np.testing.assert_array_equal(episode.action, walk(4, 2)[1:])
    assert episode.instruction == "lift the blue cube"
    assert (episode.success, episode.seed) == (True, 42)
    assert episode.image(3).shape == (24, 32, 3)


def test_another_split_is_chosen_beside_the_data(tmp_path):
    write(tmp_path / "crane_x7-train.tfrecord-00000-of-00001", [rlds_episode(5)])
    write(tmp_path / "crane_x7-val.tfrecord-00000-of-00001", [rlds_episode(7)])
    (tmp_path / "reader.yaml").write_text("split: val\n")
    assert open_logs(tmp_path).lengths.tolist() == [7]
    (tmp_path / "reader.yaml").write_text("split: test\n")
    with pytest.raises(DataError, match="split test is in no file's name, but train, val"):
        open_logs(tmp_path)


def shards(root: Path, version: str, steps: list[int], missing: int = 0) -> None:
    for number, count in enumerate(steps):
        write(
            root / version / f"crane_x7-train.tfrecord-{number:05d}-of-{len(steps) + missing:05d}",
            [rlds_episode(count)],
        )


def test_of_several_versions_the_newest_complete_one_is_read(tmp_path, caplog):
    root = tmp_path / "crane_x7" / "lift"
    for version, steps in (("1.9.0", [3]), ("1.10.0", [4, 5]), ("2.0.0.incompleteA1", [6])):
        shards(root, version, steps)
    shards(root, "1.11.0", [7, 8], missing=1)
    shards(tmp_path / "another", "0.1.0", [9])
    assert open_logs(tmp_path).lengths.tolist() == [9, 4, 5]
    assert "lift: version 1.10.0 is read; not read: 1.11.0, 1.9.0, 2.0.0.inc" in caplog.text
    assert open_logs(root / "1.9.0").lengths.tolist() == [3]


def test_a_newer_version_without_the_split_is_said_to_be_left_out(tmp_path, caplog):
    shards(tmp_path / "lift", "1.0.0", [3])
    write(tmp_path / "lift/1.1.0/crane_x7-val.tfrecord-00000-of-00001", [rlds_episode(4)])
    assert open_logs(tmp_path).lengths.tolist() == [3]
    assert "lift: version 1.0.0 is read; not read: 1.1.0" in caplog.text


def test_logs_in_folders_named_like_versions_are_all_read(tmp_path):
    for version, steps in (("1.0.0", 3), ("1.1.0", 4)):
        write(tmp_path / version / "one.tfrecord", [rlds_episode(steps)])
    assert open_logs(tmp_path).lengths.tolist() == [3, 4]


def test_where_no_version_is_complete_the_newest_says_what_it_lacks(tmp_path):
    for version in ("1.0.0", "1.2.0"):
        shards(tmp_path, version, [4], missing=1)
    with pytest.raises(DataError, match=r"1\.2\.0/crane_x7-train\.tfrecord: shards 00001 of 2"):
        open_logs(tmp_path)


def test_macos_side_files_are_left_out_and_counted(tmp_path, caplog):
    write_log(tmp_path, 0, logger_steps(3))
    log = next(tmp_path.rglob("*.tfrecord"))
    log.with_name("._" + log.name).write_bytes(b"\0\5\x16\7 Mac OS X")
    (tmp_path / ".trash").mkdir()
    shutil.copy(log, tmp_path / ".trash")
    assert open_logs(tmp_path).lengths.tolist() == [3]
    assert "2 files skipped whose names begin with a dot" in caplog.text
    assert open_source(tmp_path)[0].instruction == "pick up the red cube"
    shutil.rmtree(log.parent)
    with pytest.raises(DataError, match="found no episodes"):
        open_source(tmp_path)


def test_sequence_examples_are_episodes(tmp_path):
    joints = walk(4)
    lists: dict[str, list[Value]] = {
        "observation/image": [[picture(step)] for step in range(4)],
        "observation/state": list(joints[:-1]),
        "action": list(joints[1:]),
    }
    context: dict[str, Value] = {"language_instruction": [b"push the cube"]}
    write(tmp_path / "a.tfrecord", [sequence_example(context, lists)] * 2)
    source = open_logs(tmp_path)
    assert source.lengths.tolist() == [4, 4]
    np.testing.assert_array_equal(source[1].action, joints[1:])
    assert source[1].instruction == "push the cube"


@pytest.mark.parametrize("records", ["steps", "episodes"])
def test_gzipped_files_read_the_same(tmp_path, records):
    contents = (
        [example(step) for step in logger_steps(5)]
        if records == "steps"
        else [rlds_episode(3, seed=0), rlds_episode(5, seed=1)]
    )
    plain = write(tmp_path / "plain" / "a.tfrecord", contents)
    zipped = write(tmp_path / "zipped" / "a.tfrecord.gz", contents, zipped=True)
    ours, theirs = open_logs(zipped), open_logs(plain)
    assert ours.lengths.tolist() == theirs.lengths.tolist()
    for index in reversed(range(len(ours))):
        np.testing.assert_array_equal(ours[index].action, theirs[index].action)
        np.testing.assert_array_equal(ours[index].image(2), theirs[index].image(2))


def test_open_source_finds_them_by_what_lies_in_the_folder(tmp_path):
    write_log(tmp_path, 0, [step | {"task/language_instruction": [b""]} for step in logger_steps()])
    assert open_source(tmp_path, instruction="stack")[0].instruction == "stack"


def test_a_source_goes_to_threads_and_other_processes(tmp_path):
    for number in range(4):
        write_log(tmp_path, number, logger_steps(5, seed=number))
    source = pickle.loads(pickle.dumps(open_logs(tmp_path)))
    with ThreadPoolExecutor(4) as threads:
        episodes = list(threads.map(source.__getitem__, [0, 1, 2, 3] * 4))
    for number, episode in enumerate(episodes):
        np.testing.assert_array_equal(episode.state, walk(5, number % 4)[:-1])


@pytest.mark.parametrize("layout", ["steps", "episodes", "sequence"])
def test_pictures_stay_in_their_file_until_asked_for(tmp_path, layout):
    if layout == "steps":
        file = write_log(tmp_path, 0, logger_steps(6))
    elif layout == "episodes":
        file = write(tmp_path / "a.tfrecord", [rlds_episode(6, seed=1), rlds_episode(6)])
    else:
        lists: dict[str, list[Value]] = {
            "observation/image": [[picture(10 * step)] for step in range(6)],
            "observation/state": list(walk(6)[:-1]),
            "action": list(walk(6)[1:]),
        }
        file = write(tmp_path / "a.tfrecord", [sequence_example({}, lists)] * 2)
    source = open_logs(tmp_path)
    first = source[len(source) - 1]
    assert [first.images[step] for step in range(6)] == [picture(10 * step) for step in range(6)]
    assert len(pickle.dumps(first)) < 3000
    again = source[len(source) - 1]
    assert again.images[5] == picture(50)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(EpisodeError, match=r"tfrecord: image 5 is missing"):
        again.image(5)
    file.unlink()
    with pytest.raises(EpisodeError, match=r"tfrecord: image 5 cannot be read: .*No such file"):
        again.image(5)


def test_an_empty_folder_is_refused_with_what_was_expected(tmp_path):
    with pytest.raises(DataError, match=r"files are missing; expected NAME.tfrecord"):
        open_logs(tmp_path)


def test_an_empty_file_is_refused(tmp_path):
    write(tmp_path / "a.tfrecord", [])
    with pytest.raises(DataError, match=r"a\.tfrecord: records is empty"):
        open_logs(tmp_path)


@pytest.mark.parametrize("kept", [1, 11, 12, 100, -1, -4])
def test_a_truncated_record_is_named(tmp_path, kept):
    file = write_log(tmp_path, 0, logger_steps(3))
    first = len(framed(example(logger_steps(3)[0])))
    content = file.read_bytes()
    file.write_bytes(content[: first + kept] if kept > 0 else content[:kept])
    record = 1 if kept > 0 else 2
    with pytest.raises(
        DataError, match=rf"episode_data\.tfrecord, record {record}: bytes .*interrupted"
    ):
        open_logs(tmp_path)


def test_a_truncated_gzip_is_named(tmp_path):
    file = write(tmp_path / "a.tfrecord.gz", [rlds_episode()], zipped=True)
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"a\.tfrecord\.gz: gzip is damaged or truncated"):
        open_logs(tmp_path)


def test_a_wrong_checksum_of_the_bytes_is_named(tmp_path):
    file = write_log(tmp_path, 0, logger_steps(3))
    content = bytearray(file.read_bytes())
    content[-30] ^= 1
    file.write_bytes(content)
    source = open_logs(tmp_path)
    with pytest.raises(
        EpisodeError, match=r"episode_data\.tfrecord, record 2: checksum is .* copy it again"
    ):
        source[0]


def test_a_wrong_checksum_in_an_rlds_shard_leaves_its_other_episodes_named(tmp_path):
    file = write(tmp_path / "a.tfrecord", [rlds_episode(3), rlds_episode(4), rlds_episode(5)])
    content = bytearray(file.read_bytes())
    content[len(framed(rlds_episode(3))) + 50] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.tfrecord, record 1: checksum"):
        open_logs(tmp_path)


def test_a_wrong_checksum_of_a_length_is_named(tmp_path):
    file = write_log(tmp_path, 0, logger_steps(3))
    content = bytearray(file.read_bytes())
    content[len(framed(example(logger_steps(3)[0]))) + 2] ^= 4
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"record 1: length .* the 1 records before it are"):
        open_logs(tmp_path)


def test_a_file_that_is_no_tfrecord_is_named(tmp_path):
    (tmp_path / "a.tfrecord").write_text("this is not a TFRecord at all")
    with pytest.raises(DataError, match=r"a\.tfrecord, record 0: length .* not a TFRecord"):
        open_logs(tmp_path)


def test_a_record_that_is_no_example_is_named(tmp_path):
    write(tmp_path / "a.tfrecord", [b"\xff\xff\xff"])
    with pytest.raises(DataError, match=r"record 0: bytes \(3\) are not a tf\.train\.Example"):
        open_logs(tmp_path)


def test_all_broken_files_are_told_at_once(tmp_path):
    for number in range(4):
        file = write_log(tmp_path, number, logger_steps(3))
        if number % 2:
            file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(DataError) as raised:
        open_logs(tmp_path)
    assert "2 problems" in str(raised.value)
    assert "episode_0001" in str(raised.value)
    assert "episode_0003" in str(raised.value)
    assert "episode_0002" not in str(raised.value)


def broken(change: dict[str, Value | None], at: int = 2) -> list[dict[str, Value]]:
    """Steps of the logger of which number `at` was changed; None takes a feature away."""
    steps = logger_steps(4)
    changed = steps[at] | {name: value for name, value in change.items() if value is not None}
    steps[at] = {name: value for name, value in changed.items() if change.get(name, 0) is not None}
    return steps


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action": None}, r"record 2: action is missing, though other steps"),
        ({"action": [0.0] * 7}, r"record 2: action has 7 values per step, expected 8"),
        ({"observation/proprio": [0.0] * 9}, r"record 2: observation/proprio has 9 values"),
        ({"action": [0.0] * 7 + [float("nan")]}, r"action row 2 joint 7 is nan"),
        ({"observation/proprio": [float("inf")] + [0.0] * 7}, r"state row 2 joint 0 is inf"),
        ({"observation/image_primary": [b"GIF89a"]}, r"image_primary of step 2 begins with b'GIF"),
        ({"observation/image_primary": [picture(1)] * 2}, r"record 2: .*primary holds 2 images"),
        ({"task/language_instruction": [b"no"]}, r'instruction changes from "pick.* to "no"'),
        ({"observation/timestep": [0]}, r"timestep goes from 1 to 0 at step 2"),
        ({"observation/timestep": [5]}, r"timestep goes from 1 to 5 at step 2"),
    ],
)
def test_a_broken_step_is_named_with_its_feature(tmp_path, change, message):
    write_log(tmp_path, 0, broken(change))
    source = open_logs(tmp_path)
    with pytest.raises(EpisodeError, match=rf"episode_data\.tfrecord.*{message}"):
        source[0]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("observation/image_primary", "image"),
        ("observation/proprio", "state"),
        ("action", "action"),
    ],
)
def test_a_feature_missing_everywhere_is_named_with_what_is_there(tmp_path, name, expected):
    write_log(
        tmp_path, 0, [{key: step[key] for key in step if key != name} for step in logger_steps()]
    )
    source = open_logs(tmp_path)
    with pytest.raises(EpisodeError, match=rf"{expected} \(.*{name}.* the record holds .*dataset"):
        source[0]


def test_an_rlds_episode_of_seven_joints_is_named(tmp_path):
    write(tmp_path / "a.tfrecord", [rlds_episode(5, **{"steps/action": [0.0] * 35})])
    source = open_logs(tmp_path)
    with pytest.raises(EpisodeError, match=r"record 0: steps/action has 7 values per step"):
        source[0]


def test_a_broken_jpeg_is_named_when_it_is_decoded(tmp_path):
    whole = picture(20)
    write_log(tmp_path, 0, broken({"observation/image_primary": [whole[: len(whole) // 2]]}))
    episode = open_logs(tmp_path)[0]
    assert episode.image(1).shape == (24, 32, 3)
    with pytest.raises(EpisodeError, match=r"images frame 2: JPEG of \d+ bytes cannot be decoded"):
        episode.image(2)


def test_recordings_of_another_rate_are_refused(tmp_path):
    for number, period in enumerate((0.1, 1 / 30)):
        steps = [
            step | {"observation/timestamp": [period * at]}
            for at, step in enumerate(logger_steps())
        ]
        write_log(tmp_path, number, steps)
    source = open_logs(tmp_path)
    assert source[0].fps == pytest.approx(10)
    with pytest.raises(EpisodeError, match=r"episode_0001.*fps is 30 by its time stamps"):
        source[1]


def test_a_missing_shard_is_named(tmp_path):
    for shard in (0, 2):
        write(tmp_path / f"crane_x7-train.tfrecord-{shard:05d}-of-00004", [rlds_episode()])
    with pytest.raises(DataError, match=r"crane_x7-train\.tfrecord: shards 00001, 00003 of 4"):
        open_logs(tmp_path)


@pytest.mark.parametrize("text", ["", "# fps: 7\n"])
def test_options_of_which_all_are_comments_set_nothing(tmp_path, text):
    write_log(tmp_path, 0, logger_steps())
    without = open_logs(tmp_path).fps
    (tmp_path / "reader.yaml").write_text(text)
    assert open_logs(tmp_path).fps == without


def test_a_folder_of_side_files_alone_says_that_they_are_left_out(tmp_path):
    for name in ("._a.tfrecord", "._b.mcap"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7 Mac OS X")
    with pytest.raises(DataError, match=r"no episodes; .*; skipped 2 whose names begin"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fsp: 30", r"reader\.yaml: fsp is unknown; did you mean fps\?"),
        ("nonsense: 1", r"nonsense is unknown; known: fps, split"),
        ("fps: fast", r"fps is 'fast', expected a number"),
        ("fps: -1", r"fps is -1, expected above 0"),
        ("swap_red_blue: 1", r"swap_red_blue is 1, expected true or false"),
        ("- fps", r"holds \['fps'\], expected lines of key: value"),
        ("fps: [", r"reader\.yaml: text is not YAML"),
        ("fps: 10\nsplit: val\nfps: 30", r"text has fps twice, on lines 1 and 3; keep one"),
    ],
)
def test_a_wrong_option_is_named(tmp_path, text, message):
    write_log(tmp_path, 0, logger_steps())
    (tmp_path / "reader.yaml").write_text(text)
    with pytest.raises(DataError, match=message):
        open_logs(tmp_path)
