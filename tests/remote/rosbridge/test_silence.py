"""Silent subscriptions and the robot's ROS version: decisions on fake time."""

from __future__ import annotations

from crane_x7_remote.rosbridge.silence import NAME_AGAIN_S, SILENT_S, Change, SilenceWatch, describe
from crane_x7_remote.rosbridge.version import MIXED_S, VersionWatch

CAMERA = "/camera/color/image_raw/compressed"
TYPE = "sensor_msgs/CompressedImage"


def looks(silence: SilenceWatch, since_s: float, until_s: float) -> list[tuple[float, Change]]:
    """Look once a second, as pings are answered."""
    times = [since_s + k for k in range(int(until_s - since_s) + 1)]
    return [(now_s, change) for now_s in times for change in silence.look(now_s)]


def test_a_silent_cbor_subscription_falls_back_once_and_is_named_once() -> None:
    silence = SilenceWatch()
    silence.expect(CAMERA, "cbor", 100.0)
    assert silence.compression(CAMERA, "cbor") == "cbor"
    ((at_s, change),) = looks(silence, 100.5, 300.0)
    assert SILENT_S < at_s - 100 <= SILENT_S + 1
    assert change == Change(CAMERA, "silent", "none", is_news=True)
    assert silence.compression(CAMERA, "cbor") == "none"
    assert silence.is_silent(CAMERA)


def test_a_silent_subscription_without_cbor_is_named_and_left_as_it_is() -> None:
    silence = SilenceWatch()
    silence.expect("/joint_states", "none", 0.0)
    ((_, change),) = looks(silence, 0.0, 60.0)
    assert change == Change("/joint_states", "silent", None, is_news=True)


def test_a_subscription_that_brings_something_is_left_alone() -> None:
    silence = SilenceWatch()
    silence.expect(CAMERA, "cbor", 0.0)
    for second in range(60):
        silence.heard(CAMERA, float(second), is_cbor=True)
        assert silence.look(second + 0.9) == []
    assert not silence.is_silent(CAMERA)


def test_messages_that_come_at_once_without_cbor_prove_that_cbor_was_the_cause() -> None:
    silence = SilenceWatch()
    silence.expect(CAMERA, "cbor", 0.0)
    assert looks(silence, 0.0, 4.0)
    silence.heard(CAMERA, 4.1, is_cbor=False)
    (change,) = silence.look(5.0)
    assert (change.kind, change.compression) == ("cbor_failed", None)
    for second in range(5, 60):
        silence.heard(CAMERA, float(second), is_cbor=False)
        assert silence.look(second + 0.5) == []
    assert silence.compression(CAMERA, "cbor") == "none"


def test_a_camera_that_starts_late_gets_cbor_again() -> None:
    silence = SilenceWatch()
    silence.expect(CAMERA, "cbor", 0.0)
    assert looks(silence, 0.0, 30.0)
    silence.heard(CAMERA, 31.0, is_cbor=False)
    assert silence.look(31.5) == [Change(CAMERA, "cbor_again", "cbor", is_news=False)]
    silence.heard(CAMERA, 31.6, is_cbor=False)  # was on its way
    silence.heard(CAMERA, 31.7, is_cbor=True)
    assert silence.look(32.0) == []
    assert silence.compression(CAMERA, "cbor") == "cbor"


def test_cbor_gets_one_more_chance_and_no_third() -> None:
    silence = SilenceWatch()
    silence.expect(CAMERA, "cbor", 0.0)
    looks(silence, 0.0, 30.0)
    silence.heard(CAMERA, 31.0, is_cbor=False)
    assert [change.kind for change in silence.look(31.5)] == ["cbor_again"]
    kinds = [change.kind for _, change in looks(silence, 32.0, 36.0)]
    assert kinds == ["silent"]
    silence.heard(CAMERA, 50.0, is_cbor=False)
    assert [change.kind for change in silence.look(50.5)] == ["cbor_failed"]
    assert silence.compression(CAMERA, "cbor") == "none"


def test_a_camera_that_fails_again_and_again_is_named_once_a_minute() -> None:
    silence = SilenceWatch()
    silence.expect(CAMERA, "cbor", 0.0)
    named = []
    for second in range(300):
        if second % 10 == 0:
            silence.heard(CAMERA, float(second), is_cbor=True)
        named += [second for change in silence.look(second + 0.5) if change.is_news]
    assert 4 <= len(named) <= 300 / NAME_AGAIN_S + 1


def test_a_new_connection_begins_with_cbor_anew() -> None:
    silence = SilenceWatch()
    silence.expect(CAMERA, "cbor", 0.0)
    looks(silence, 0.0, 10.0)
    silence.expect(CAMERA, "cbor", 10.0)
    assert silence.compression(CAMERA, "cbor") == "cbor"
    assert not silence.is_silent(CAMERA)


def test_the_words_name_topic_type_and_command_of_the_robots_ros() -> None:
    assert f"`ros2 topic hz {CAMERA}` (ROS 1: `rostopic hz {CAMERA}`)" in describe(
        CAMERA, TYPE, None
    )
    assert "ros2" not in describe(CAMERA, TYPE, 1)
    assert "rostopic" not in describe(CAMERA, TYPE, 2)
    assert TYPE in describe(CAMERA, TYPE, 2)
    assert "/compressed" in describe("/camera/image_raw", TYPE, 2)


# --- version -------------------------------------------------------------------------------------


def test_the_version_is_unknown_until_a_stamp_came_and_after_a_new_connection() -> None:
    watch = VersionWatch()
    assert watch.version is None
    assert "no stamp" in (watch.doubt or "")
    watch.observe(1, "/joint_states", 5.0)
    assert (watch.version, watch.doubt) == (1, None)
    watch.reset()
    assert watch.version is None


def test_stamps_of_both_versions_are_no_version_and_both_topics_are_named() -> None:
    watch = VersionWatch()
    watch.observe(2, "/joint_states", 5.0)
    watch.observe(1, "/camera", 5.1)
    watch.observe(2, "/joint_states", 5.2)
    assert watch.version is None
    for words in ("/joint_states", "/camera", "secs", "sec/nanosec"):
        assert words in (watch.doubt or "")


def test_one_odd_stamp_is_forgotten_after_a_while() -> None:
    watch = VersionWatch()
    watch.observe(2, "/joint_states", 5.0)
    watch.observe(1, "/joint_states", 5.1)
    watch.observe(2, "/joint_states", 5.1 + MIXED_S - 0.1)
    assert watch.version is None
    watch.observe(2, "/joint_states", 5.1 + MIXED_S)
    assert watch.version == 2
