"""Episodes from ROS 2 bags, and every way in which a bag can be wrong."""

from __future__ import annotations

import pickle
import shutil
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import mcap_rig
import numpy as np
import pytest
from mcap_rig import CHANNEL, SCHEMA, STATISTICS
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags_rig import (
    ARM,
    CAMERA,
    INSTRUCTION,
    JOINTS,
    LEADER,
    TRAJECTORY,
    Scene,
    Sent,
    compressed,
    joint_state,
    joints_at,
    raw_image,
    text,
    trajectory,
    write_bag,
)
from tfrecord_rig import picture

from crane_x7_vla_rl.data.episode import DataError, EpisodeError
from crane_x7_vla_rl.data.rosbags.align import nearest
from crane_x7_vla_rl.data.rosbags.source import RosbagSource, open_rosbags
from crane_x7_vla_rl.data.source import open_source
from crane_x7_vla_rl.robot import ARM_JOINT_NAMES, JOINT_NAMES

DEFAULT = "do what the bag does not tell"


def open_bags(path: Path) -> RosbagSource:
    return open_rosbags(path, instruction=DEFAULT)


def green(source: RosbagSource, frame: int, episode: int = 0) -> int:
    return int(source[episode].image(frame)[2, 16, 1])


@pytest.mark.parametrize("storage", [StoragePlugin.SQLITE3, StoragePlugin.MCAP])
def test_a_bag_is_one_episode_at_a_fixed_rate(tmp_path, storage):
    write_bag(tmp_path / "one", Scene().sent(), storage=storage)
    source = open_bags(tmp_path)
    assert (len(source), source.fps, source.name) == (1, 10.0, str(tmp_path))
    episode = source[0]
    assert source.lengths.tolist() == [len(episode)] == [19]
    expected = np.array([joints_at(0.1 * frame) for frame in range(20)])
    np.testing.assert_allclose(episode.state, expected[:-1], atol=1e-6)
    np.testing.assert_allclose(episode.action, expected[1:], atol=1e-6)
    assert episode.instruction == "pick up the red cube"
    assert (episode.success, episode.seed, episode.source) == (None, None, str(tmp_path / "one"))


def test_each_frame_is_the_picture_nearest_in_time(tmp_path):
    write_bag(tmp_path / "one", Scene(joints_delay_s=0.31).sent())
    source = open_bags(tmp_path)
    for frame in (0, 7, 12):
        number = 7 + 3 * frame  # The first picture at most 0.1 s before the joints is 7 / 30 s.
        assert abs(green(source, frame) - 4 * number) <= 1


def test_nearest_agrees_with_looking_at_all():
    chance = np.random.default_rng(3)
    for size in (1, 2, 3, 50):
        stamps = np.sort(chance.uniform(0, 10, size))
        times = chance.uniform(-1, 11, 200)
        naive = np.abs(stamps[None] - times[:, None]).argmin(axis=1)
        np.testing.assert_array_equal(nearest(stamps, times), naive)


def test_bags_without_stamps_go_by_the_recorders_time(tmp_path):
    write_bag(tmp_path / "one", Scene(stamped=False).sent())
    episode = open_bags(tmp_path)[0]
    np.testing.assert_allclose(episode.state[5], joints_at(0.5), atol=1e-6)


def test_stamps_of_clocks_out_of_step_are_not_mixed(tmp_path):
    sent = [
        (time, topic, joint_state(time - 90, ahead_s=90) if topic == JOINTS else message)
        for time, topic, message in Scene().sent()
    ]
    write_bag(tmp_path / "one", sent)
    episode = open_bags(tmp_path)[0]
    np.testing.assert_allclose(episode.state[5], joints_at(0.5), atol=1e-6)


def test_messages_delivered_late_are_put_at_the_time_of_their_stamp(tmp_path):
    sent = [
        (time + (0.06 if topic == CAMERA and round(time * 30) % 2 else 0), topic, message)
        for time, topic, message in Scene().sent()
    ]
    write_bag(tmp_path / "one", sent)
    source = open_bags(tmp_path)
    for frame in (1, 2, 3):
        assert abs(green(source, frame) - 12 * frame) <= 1


def test_the_operators_arm_is_the_action_where_it_was_recorded(tmp_path):
    leader = [
        (time, LEADER, joint_state(time, ahead_s=0.25))
        for time, topic, _ in Scene().sent()
        if topic == JOINTS
    ]
    write_bag(tmp_path / "one", Scene().sent() + leader)
    episode = open_bags(tmp_path)[0]
    np.testing.assert_allclose(episode.state[3], joints_at(0.3), atol=1e-6)
    np.testing.assert_allclose(episode.action[3], joints_at(0.4 + 0.25), atol=1e-6)


def test_a_published_trajectory_is_the_action_one_period_later(tmp_path):
    target = joints_at(1.0) + 0.2
    message = trajectory(1.0, JOINT_NAMES, [(0.25, joints_at(1.0) + 0.1), (0.5, target)])
    write_bag(tmp_path / "one", [*Scene().sent(), (1.0, TRAJECTORY, message)])
    episode = open_bags(tmp_path)[0]
    np.testing.assert_allclose(episode.action[4], joints_at(0.5), atol=1e-6)  # Before it: measured.
    np.testing.assert_allclose(episode.action[10], joints_at(1.0) + 0.04, atol=1e-6)  # To point 1.
    np.testing.assert_allclose(episode.action[12], joints_at(1.0) + 0.12, atol=1e-6)
    np.testing.assert_allclose(episode.action[-1], target, atol=1e-6)  # Stays at the last.


def test_an_arm_trajectory_leaves_the_gripper_to_what_was_measured(tmp_path):
    names = tuple(reversed(ARM_JOINT_NAMES))
    message = trajectory(None, names, [(0.1, [0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1])])
    write_bag(tmp_path / "one", [*Scene().sent(), (0.5, ARM, message)])
    episode = open_bags(tmp_path)[0]
    np.testing.assert_allclose(episode.action[10, :7], np.arange(1, 8) / 10, atol=1e-6)
    np.testing.assert_allclose(episode.action[10, 7], joints_at(1.1)[7], atol=1e-6)


def test_where_actions_come_from_can_be_chosen(tmp_path):
    message = trajectory(0.0, JOINT_NAMES, [(0.1, np.zeros(8))])
    write_bag(tmp_path / "one", [*Scene().sent(), (0.0, TRAJECTORY, message)])
    (tmp_path / "reader.yaml").write_text("action_from: next_state\nfps: 15\n")
    source = open_bags(tmp_path)
    assert source.fps == 15.0
    np.testing.assert_allclose(source[0].action[3], joints_at(0.27), atol=1e-6)


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "bgra8"])
def test_raw_images_are_read_as_rgb(tmp_path, encoding):
    rgb = np.zeros((6, 4, 3), np.uint8)
    rgb[:, :2] = (200, 100, 50)
    stored = rgb if encoding == "rgb8" else rgb[..., ::-1]
    stored = np.dstack([stored, np.full((6, 4), 255, np.uint8)]) if "a" in encoding else stored
    sent = [entry for entry in Scene().sent() if entry[1] != CAMERA]
    sent += [(at / 30, "/camera/raw", raw_image(at / 30, stored, encoding)) for at in range(60)]
    write_bag(tmp_path / "one", sent)
    (tmp_path / "reader.yaml").write_text("camera_topic: /camera/raw\n")
    np.testing.assert_array_equal(open_bags(tmp_path)[0].image(3), rgb)


@pytest.mark.parametrize("mode", [CompressionMode.FILE, CompressionMode.MESSAGE])
def test_compressed_bags_read_the_same(tmp_path, mode):
    write_bag(
        tmp_path / "one",
        Scene().sent(),
        storage=StoragePlugin.SQLITE3,
        configure=lambda writer: writer.set_compression(mode, CompressionFormat.ZSTD),
    )
    source = open_bags(tmp_path)
    np.testing.assert_allclose(source[0].state[5], joints_at(0.5), atol=1e-6)
    assert abs(green(source, 5) - 60) <= 1


def test_lone_files_and_a_single_bag_are_read(tmp_path):
    bag = write_bag(tmp_path / "bags" / "one", Scene().sent())
    lone = shutil.copy(next(bag.glob("*.mcap")), tmp_path / "lone.mcap")
    assert open_bags(bag).lengths.tolist() == [19]
    assert open_bags(Path(lone)).lengths.tolist() == [19]
    assert open_bags(tmp_path).lengths.tolist() == [19, 19]


def test_open_source_finds_bags_and_gives_the_instruction(tmp_path):
    write_bag(tmp_path / "one", Scene(instruction=None).sent())
    assert open_source(tmp_path, instruction="stack")[0].instruction == "stack"


def test_a_source_goes_to_threads_and_other_processes(tmp_path):
    for number in range(2):
        write_bag(tmp_path / f"{number}", Scene(seconds=1 + number).sent())
    source = pickle.loads(pickle.dumps(open_bags(tmp_path)))
    with ThreadPoolExecutor(4) as threads:
        episodes = list(threads.map(source.__getitem__, [0, 1] * 4))
    assert [len(episode) for episode in episodes] == [9, 19] * 4
    assert episodes[5].image(18).shape == (24, 32, 3)


def without(topic: str) -> list:
    return [entry for entry in Scene().sent() if entry[1] != topic]


def replaced(topic: str, at_s: float, message: object) -> list:
    sent = [entry for entry in Scene().sent() if entry[1] != topic or abs(entry[0] - at_s) > 1e-3]
    return [*sent, (at_s, topic, message)]


def joints_like(begin_s: float = 0.0, end_s: float = 2.0, **fields: object) -> list:
    return [
        (
            at,
            topic,
            joint_state(at, **fields) if topic == JOINTS and begin_s <= at < end_s else sent,
        )
        for at, topic, sent in Scene().sent()
    ]


def names_without_wrist() -> list[str]:
    return [name for name in JOINT_NAMES if "wrist" not in name]


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (without(CAMERA), rf"one: {CAMERA} is missing from the bag, .*; topics of this type: none"),
        (without(JOINTS), rf"one: {JOINTS} is missing from the bag"),
        (
            [*without(CAMERA), (0.5, "/wrist/compressed", compressed(0.5, picture(0)))],
            rf"{CAMERA} is missing .* topics of this type: /wrist/compressed; name one",
        ),
        (
            [*without(CAMERA), (0.5, CAMERA, text("no picture"))],
            rf"{CAMERA} is std_msgs/msg/String, expected sensor_msgs/msg/CompressedImage or",
        ),
        (
            joints_like(names=names_without_wrist()),
            r"/joint_states holds no .*; 200 messages were skipped, .* lacks crane_x7_wrist_joint",
        ),
        (
            joints_like(names=JOINT_NAMES, positions=[0.0] * 7),
            r"/joint_states holds no usable message.* has 8 names and 7 positions",
        ),
        (
            joints_like(0.5, 1.5, names=JOINT_NAMES, positions=[0.0] * 7 + [float("nan")]),
            r"/joint_states has no message within 0\.1 s of 1\.00 s; .*; 100 messages were"
            r" skipped, the first crane_x7_gripper_finger_a_joint is nan, expected rad",
        ),
        (
            joints_like(0.05, names=JOINT_NAMES, positions=[1e300] + [0.0] * 7),
            r"overlap .*, the first crane_x7_shoulder_fixed_part_pan_joint is 1e\+300, expected",
        ),
        (
            [*Scene().sent(), (0.2, TRAJECTORY, trajectory(0.2, ["elbow"], [(1, [0.0])]))],
            r"predicted_trajectory moves elbow, none of the arm's joints",
        ),
        (
            [
                *Scene().sent(),
                (0.2, TRAJECTORY, trajectory(0.2, JOINT_NAMES, [(1, [float("inf")] * 8)])),
            ],
            r"predicted_trajectory has points that are not finite",
        ),
        (
            [*Scene().sent(), (0.2, TRAJECTORY, trajectory(0.2, JOINT_NAMES, [(1, [0.0] * 7)]))],
            r"predicted_trajectory has a point of 7 positions, 8 names",
        ),
        (
            [*Scene().sent(), (1.0, INSTRUCTION, text("put it down"))],
            r'update_instruction changes from "pick up the red cube" to "put it down"',
        ),
        (
            [entry for entry in Scene().sent() if not (entry[1] == CAMERA and 0.5 < entry[0] < 1)],
            r"compressed has no message within 0\.1 s of 0\.[67]\d s; the nearest is 0\.2\d s away",
        ),
        (
            [entry for entry in Scene().sent() if not (entry[1] == JOINTS and 0.5 < entry[0] < 1)],
            r"/joint_states has no message within 0\.1 s of 0\.[67]",
        ),
        (Scene(joints_delay_s=1.99).sent(), r"overlap by less than two frames"),
    ],
)
def test_a_wrong_bag_is_named_with_its_topic(tmp_path, sent, message):
    write_bag(tmp_path / "one", sent)
    with pytest.raises(DataError, match=message):
        open_bags(tmp_path)


FOREIGN = (
    joint_state(0.5, names=["wheel_left", "wheel_right"]),
    joint_state(0.5, names=[]),
    joint_state(0.5, names=names_without_wrist()),
    joint_state(0.5, names=[*JOINT_NAMES, JOINT_NAMES[0]]),
    joint_state(0.5, names=JOINT_NAMES, positions=[0.0] * 7),
    joint_state(0.5, names=JOINT_NAMES, positions=[float("nan")] * 8),
    joint_state(0.5, names=JOINT_NAMES, positions=[1e300] + [0.0] * 7),
)


@pytest.mark.parametrize("message", FOREIGN)
@pytest.mark.parametrize("topic", [JOINTS, LEADER])
def test_a_few_unusable_joint_states_are_left_out_and_counted(tmp_path, topic, message, caplog):
    leader = [(time, LEADER, sent) for time, name, sent in Scene().sent() if name == JOINTS]
    scene = [*Scene().sent(), *leader]
    write_bag(tmp_path / "one", [*scene, (0.5, topic, message), (0.505, topic, message)])
    write_bag(tmp_path / "whole", scene)
    source = open_bags(tmp_path)
    np.testing.assert_array_equal(source[0].state, source[1].state)
    np.testing.assert_array_equal(source[0].action, source[1].action)
    assert f"{topic} has 200 usable messages; 2 messages were skipped, the first" in caplog.text


def test_a_camera_slower_than_the_episodes_rate_is_refused(tmp_path):
    write_bag(tmp_path / "fast", Scene(camera_hz=30).sent())
    write_bag(tmp_path / "slow", Scene(camera_hz=6).sent())
    with pytest.raises(DataError, match=r"slow: /camera.* has \d+ images for .* at most that"):
        open_bags(tmp_path)
    (tmp_path / "reader.yaml").write_text("fps: 6\n")
    assert [source.fps for source in (open_bags(tmp_path)[0], open_bags(tmp_path)[1])] == [6, 6]


def test_a_picture_that_is_no_jpeg_is_named_when_it_is_read(tmp_path):
    write_bag(tmp_path / "one", replaced(CAMERA, 0.5, compressed(0.5, b"not a picture")))
    source = open_bags(tmp_path)
    with pytest.raises(
        EpisodeError, match=r"one: /camera.* begins with b'not a pi', expected JPEG"
    ):
        source[0]


def test_a_broken_jpeg_is_named_when_it_is_decoded(tmp_path):
    half = picture(30)[:400]
    write_bag(tmp_path / "one", replaced(CAMERA, 0.5, compressed(0.5, half)))
    episode = open_bags(tmp_path)[0]
    assert episode.image(4).shape == (24, 32, 3)
    with pytest.raises(EpisodeError, match=r"one: images frame 5: JPEG of 400 bytes"):
        episode.image(5)


@pytest.mark.parametrize("kept", [0, 5, 100, 5000, -1, -50, -5000])
@pytest.mark.parametrize("storage", [StoragePlugin.SQLITE3, StoragePlugin.MCAP])
def test_a_truncated_bag_is_named(tmp_path, storage, kept):
    bag = write_bag(tmp_path / "one", Scene().sent(), storage=storage)
    write_bag(tmp_path / "two", Scene().sent(), storage=storage)
    file = next(path for path in bag.iterdir() if path.suffix in (".db3", ".mcap"))
    content = file.read_bytes()
    file.write_bytes(content[:kept])
    with pytest.raises(DataError, match=r"/one.*: bag cannot be read .* can often be repaired"):
        open_bags(tmp_path)


@pytest.mark.parametrize("compression", [None, CompressionMode.STORAGE])
def test_a_bag_damaged_in_the_middle_is_never_read_as_another(tmp_path, compression):
    def configure(writer: Writer) -> None:
        if compression is not None:
            writer.set_compression(compression, CompressionFormat.ZSTD)

    bag = write_bag(tmp_path / "one", Scene().sent(), configure=configure)
    whole = open_bags(tmp_path)[0]
    file = next(bag.glob("*.mcap"))
    content = file.read_bytes()
    chance = np.random.default_rng(0)
    named = 0
    for at in chance.integers(60, len(content), 30):
        damaged = bytearray(content)
        damaged[at : at + 64] = chance.bytes(64)[: len(content) - at]
        file.write_bytes(damaged)
        try:
            episode = open_bags(tmp_path)[0]
        except DataError as error:
            named += "/one" in str(error)
            continue
        np.testing.assert_array_equal(episode.state, whole.state)
    assert named


def test_messages_that_got_lost_are_missed(tmp_path):
    bag = write_bag(tmp_path / "one", Scene().sent(), storage=StoragePlugin.SQLITE3)
    with closing(sqlite3.connect(next(bag.glob("*.db3")))) as database:
        database.execute("DELETE FROM messages WHERE id = 40")
        database.commit()
    with pytest.raises(DataError, match=r"/one: bag holds 260 messages .* counts 261: a part"):
        open_bags(tmp_path)


@pytest.mark.parametrize(
    "rewrite",
    [
        mcap_rig.without_summary,
        mcap_rig.without_channel_counts,
        mcap_rig.with_chunk_index_alone,
        lambda content: mcap_rig.with_chunk_index_alone(content, (SCHEMA, CHANNEL)),
        lambda content: mcap_rig.with_chunk_index_alone(content, (SCHEMA, CHANNEL, STATISTICS)),
        lambda content: mcap_rig.with_chunk_index_alone(content, (STATISTICS,)),
    ],
)
@pytest.mark.parametrize("ordered", [True, False])
def test_what_an_mcaps_index_leaves_out_is_still_found(tmp_path, rewrite, ordered):
    def latency_s(sent: Sent) -> float:
        return 0.004 if ordered or sent[1] == JOINTS else 0.05

    bag = write_bag(tmp_path / "one", Scene().sent(), latency_s=latency_s)
    whole = open_bags(bag)[0]
    file = next(bag.glob("*.mcap"))
    file.write_bytes(rewrite(file.read_bytes()))
    lone = shutil.copy(file, tmp_path / "lone.mcap")
    for path in (bag, Path(lone)):
        episode = open_bags(path)[0]
        np.testing.assert_array_equal(episode.state, whole.state)
        np.testing.assert_array_equal(episode.image(18), whole.image(18))


def test_macos_side_files_are_left_out_and_counted(tmp_path, caplog):
    bag = write_bag(tmp_path / "bags" / "one", Scene().sent(), storage=StoragePlugin.SQLITE3)
    shutil.copy(next(write_bag(tmp_path / "two", Scene().sent()).glob("*.mcap")), tmp_path / "bags")
    for path in (bag / "._one.db3", bag / "._metadata.yaml", tmp_path / "bags" / "._two.mcap"):
        path.write_bytes(b"\0\5\x16\7 Mac OS X")
    assert len(open_bags(tmp_path / "bags")) == 2
    assert open_bags(bag).lengths.tolist() == [19]
    assert "2 files skipped whose names begin with a dot, such as ._two.mcap" in caplog.text


def test_a_bag_without_its_metadata_in_parts_is_named(tmp_path):
    bag = write_bag(tmp_path / "bags" / "one", Scene().sent())
    for part in range(2):
        shutil.copy(next(bag.glob("*.mcap")), tmp_path / f"run_{part}.mcap")
    with pytest.raises(DataError, match=r"metadata\.yaml is missing, so run_0\.mcap and run_1"):
        open_bags(tmp_path)


def test_an_empty_folder_is_refused_with_what_was_expected(tmp_path):
    with pytest.raises(DataError, match=r"bags are missing; expected folders with metadata\.yaml"):
        open_bags(tmp_path)


def test_all_wrong_bags_are_told_at_once(tmp_path):
    for number in range(4):
        sent = without(CAMERA) if number % 2 else Scene().sent()
        write_bag(tmp_path / f"bag{number}", sent)
    with pytest.raises(DataError) as raised:
        open_bags(tmp_path)
    assert "2 problems" in str(raised.value)
    assert "bag1: /camera" in str(raised.value)
    assert "bag3: /camera" in str(raised.value)


def test_bags_that_mean_different_things_by_an_action_are_refused(tmp_path):
    leader = [(time, LEADER, joint_state(time)) for time in np.arange(0, 2, 0.01)]
    write_bag(tmp_path / "a", Scene().sent() + leader)
    write_bag(tmp_path / "b", Scene().sent())
    with pytest.raises(DataError, match=r"/b: action comes from next_state, that of .*leader"):
        open_bags(tmp_path)


def test_a_wrong_option_is_named(tmp_path):
    write_bag(tmp_path / "one", Scene().sent())
    (tmp_path / "reader.yaml").write_text("action_from: follower\n")
    with pytest.raises(DataError, match=r"action_from is 'follower', expected auto or leader or"):
        open_bags(tmp_path)
