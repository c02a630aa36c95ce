"""Everything beside the arm but the guard: driver, controllers, camera, rosbridge.

No move_group: it owns the arm's controller, too, and two owners make the arm jump. Arguments:

    port:=/dev/ttyUSB0             the arm's USB serial port; `none` starts no arm
    camera:=realsense|usb|none     realsense2_camera or usb_cam
    video_device:=/dev/video0      for usb
    wrist_camera:=none|usb         a second camera on the gripper, usb_cam
    wrist_video_device:=/dev/video2
    rosbridge_port:=9090           on 127.0.0.1 alone; the guard is in front of it
"""

import os

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, EmitEvent, OpaqueFunction, RegisterEventHandler
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.substitutions import Command
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

HERE = os.path.dirname(os.path.realpath(__file__))
CONTROLLERS = ("joint_state_broadcaster", "crane_x7_arm_controller", "crane_x7_gripper_controller")
ARGUMENTS = {
    "port": os.environ.get("ARM_PORT", "/dev/ttyUSB0"),
    "camera": os.environ.get("CAMERA", "realsense"),
    "video_device": os.environ.get("VIDEO_DEVICE", "/dev/video0"),
    "wrist_camera": os.environ.get("WRIST_CAMERA", "none"),
    "wrist_video_device": os.environ.get("WRIST_VIDEO_DEVICE", "/dev/video2"),
    "rosbridge_port": os.environ.get("ROSBRIDGE_PORT_BEHIND_GUARD", "9090"),
}
WIDTH, HEIGHT, RATE_HZ = 640, 480, 30


def arm(port):
    """Return the driver and its controllers; the arm gets torque when they are active."""
    share = get_package_share_directory("crane_x7_description")
    config = os.path.join(get_package_share_directory("crane_x7_control"), "config")
    model = Command(
        [
            "xacro ", os.path.join(share, "urdf", "crane_x7.urdf.xacro"),
            " port_name:=", port, " baudrate:=3000000 timeout_seconds:=1.0",
            " manipulator_config_file_path:=", os.path.join(config, "manipulator_config.yaml"),
            " manipulator_links_file_path:=", os.path.join(config, "manipulator_links.csv"),
        ]
    )  # fmt: skip
    description = {"robot_description": ParameterValue(model, value_type=str)}
    manager = Node(
        package="controller_manager",
        executable="ros2_control_node",
        parameters=[os.path.join(HERE, "controllers.yaml")],
        # Humble listens in the node's own namespace, Jazzy at the top.
        remappings=[("~/robot_description", "/robot_description")],
        output="screen",
    )
    return [
        Node(
            package="robot_state_publisher",
            executable="robot_state_publisher",
            parameters=[description],
            output="screen",
        ),
        manager,
        Node(
            package="controller_manager",
            executable="spawner",
            arguments=[*CONTROLLERS, "--controller-manager-timeout", "30"],
            output="screen",
        ),
        # Without the driver nothing here is of use: end, so that compose or a person sees it.
        RegisterEventHandler(
            OnProcessExit(
                target_action=manager, on_exit=[EmitEvent(event=Shutdown(reason="driver ended"))]
            )
        ),
    ]


def camera(kind, video_device):
    """Return the camera's node: /camera/color/image_raw/compressed, the loop's default topic.

    compressed_image_transport adds the compressed topic to either node.
    """
    if kind == "none":
        return []
    if kind == "realsense":
        # The maker's launch file puts the node into a namespace: /camera/camera/color/…
        return [
            Node(
                package="realsense2_camera",
                executable="realsense2_camera_node",
                name="camera",
                namespace="",
                parameters=[
                    {
                        "rgb_camera.color_profile": f"{WIDTH}x{HEIGHT}x{RATE_HZ}",
                        "enable_depth": False,
                    }
                ],
                output="screen",
            )
        ]
    if kind == "usb":
        return [usb_camera("/camera/color", video_device, "camera_color_optical_frame")]
    raise ValueError(f"camera:={kind}, expected realsense, usb or none")


def wrist_camera(kind, video_device):
    """Return the second camera's node: /wrist/image_raw/compressed, for WRIST_CAMERA_TOPIC."""
    if kind == "none":
        return []
    if kind == "usb":
        return [usb_camera("/wrist", video_device, "wrist_optical_frame")]
    raise ValueError(f"wrist_camera:={kind}, expected usb or none")


def usb_camera(namespace, video_device, frame_id):
    """Return the node of a USB camera, which publishes NAMESPACE/image_raw."""
    return Node(
        package="usb_cam",
        executable="usb_cam_node_exe",
        name="usb_cam",
        namespace=namespace,
        parameters=[
            {
                "video_device": video_device,
                "pixel_format": "mjpeg2rgb",
                "image_width": WIDTH,
                "image_height": HEIGHT,
                "framerate": float(RATE_HZ),
                "frame_id": frame_id,
            }
        ],
        output="screen",
    )


def rosbridge(port):
    """Return rosbridge on 127.0.0.1 alone, so that nobody can bypass the guard."""
    return [
        Node(
            package="rosbridge_server",
            executable="rosbridge_websocket",
            name="rosbridge_websocket",
            parameters=[{"address": "127.0.0.1", "port": int(port)}],
            output="screen",
        )
    ]


def setup(context):
    """Return the nodes for the arguments of this launch."""
    given = context.launch_configurations
    started = [] if given["port"] == "none" else arm(given["port"])
    return [
        *started,
        *camera(given["camera"], given["video_device"]),
        *wrist_camera(given["wrist_camera"], given["wrist_video_device"]),
        *rosbridge(given["rosbridge_port"]),
    ]


def generate_launch_description():
    """Return the launch description; ros2 launch calls this."""
    declared = [
        DeclareLaunchArgument(name, default_value=value) for name, value in ARGUMENTS.items()
    ]
    return LaunchDescription([*declared, OpaqueFunction(function=setup)])
