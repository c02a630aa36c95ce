"""The CRANE-X7 as a URDF of boxes: the dimensions in `robot` → a file in the temporary folder.

Few vertices on purpose: the cost of software rendering grows with them. The maker's meshes are not
used.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

from crane_x7_vla_rl.robot import (
    ARM_JOINTS,
    BASE_MASS_KG,
    BASE_PLATE_M,
    FINGER_A,
    FINGER_B,
    PREFIX,
    VELOCITY_RAD_S,
    Joint,
)
from crane_x7_vla_rl.sim import generated

Vector3 = tuple[float, float, float]

WHITE, BLACK, STEEL = "0.82 0.82 0.80 1", "0.13 0.13 0.14 1", "0.45 0.46 0.48 1"

FINGER_LINKS: Final = (PREFIX + "gripper_finger_a_link", PREFIX + "gripper_finger_b_link")
BASE_LINK: Final = PREFIX + "shoulder_fixed_part_link"
GRIPPER_BASE_LINK: Final = PREFIX + "gripper_base_link"

PAD_TILT_RAD: Final = 0.3
"""The pads lean inwards by this, so that they are parallel around a cube of 3 to 4 cm: upright pads
on revolute fingers would open towards the tips and squeeze the cube out."""
PAD_LENGTH_M: Final = 0.034


@dataclass(frozen=True)
class Box:
    """A box in its link's frame; it is rendered, and collides if `solid`."""

    centre_m: Vector3
    size_m: Vector3
    colour: str = WHITE
    pitch_rad: float = 0.0
    solid: bool = True


@dataclass(frozen=True)
class Body:
    """A link and its boxes."""

    link: str
    mass_kg: float
    boxes: tuple[Box, ...]


def _finger(side: int) -> tuple[Box, ...]:
    """The boxes of a finger; `side` is −1 for A, at negative x, and +1 for B.

    Closed (0 rad) the tips of both pads meet at x = 0 of the gripper base. Inwards is −side·x.
    """
    return (
        Box((side * 0.012, 0, 0.016), (0.012, 0.020, 0.032), BLACK),
        Box((side * 0.012, 0, 0.044), (0.010, 0.020, 0.032), BLACK),
        Box(
            (-side * 0.003, 0, 0.0575),
            (0.008, 0.022, PAD_LENGTH_M),
            STEEL,
            pitch_rad=-side * PAD_TILT_RAD,
        ),
    )


BODIES: Final = (
    Body(
        BASE_LINK,
        BASE_MASS_KG,
        (Box((0, 0, 0.018), (0.09, 0.09, 0.036), BLACK),),
    ),
    Body(
        PREFIX + "shoulder_revolute_part_link",
        ARM_JOINTS[0].mass_kg,
        (Box((0, 0, 0.032), (0.062, 0.082, 0.062)),),
    ),
    Body(
        PREFIX + "upper_arm_fixed_part_link",
        ARM_JOINTS[1].mass_kg,
        (Box((0, 0, 0.022), (0.056, 0.056, 0.086), BLACK),),
    ),
    Body(
        PREFIX + "upper_arm_revolute_part_link",
        ARM_JOINTS[2].mass_kg,
        (Box((0, 0, 0.080), (0.054, 0.054, 0.160)),),
    ),
    Body(
        PREFIX + "lower_arm_fixed_part_link",
        ARM_JOINTS[3].mass_kg,
        (Box((0, 0, 0.048), (0.052, 0.052, 0.146), BLACK),),
    ),
    Body(
        PREFIX + "lower_arm_revolute_part_link",
        ARM_JOINTS[4].mass_kg,
        (Box((0, 0, 0.052), (0.048, 0.048, 0.104)),),
    ),
    Body(
        PREFIX + "wrist_link",
        ARM_JOINTS[5].mass_kg,
        (Box((0, 0, 0.0), (0.046, 0.046, 0.036), BLACK),),
    ),
    Body(
        GRIPPER_BASE_LINK,
        ARM_JOINTS[6].mass_kg,
        (
            Box((0, 0, 0.008), (0.054, 0.046, 0.022)),
            # The camera's housing is only rendered: it must not stop the arm.
            Box((0, 0.040, 0.020), (0.090, 0.022, 0.024), STEEL, solid=False),
        ),
    ),
    Body(FINGER_LINKS[0], FINGER_A.mass_kg, _finger(-1)),
    Body(FINGER_LINKS[1], FINGER_B.mass_kg, _finger(1)),
)
"""Base to fingers; body k + 1 is attached to arm joint k, both fingers to the gripper base."""


def urdf() -> str:
    """Return the model as URDF text.

    It has no <mimic>: SAPIEN's mimic constraint drove the fingers beyond their limits.
    """
    robot = ET.Element("robot", name="crane_x7")
    root = ET.SubElement(robot, "link", name="base_link")
    _inertial(root, 1.0, (0.1, 0.1, 0.01))
    _joint(
        robot, "crane_x7_mounting_plate_joint", "fixed", "base_link", BASE_LINK,
        (0, 0, BASE_PLATE_M),
    )  # fmt: skip
    for body in BODIES:
        _link(robot, body)
    parents = [body.link for body in BODIES]
    for index, joint in enumerate(ARM_JOINTS):
        _revolute(robot, joint, parents[index], parents[index + 1])
    for finger, link in zip((FINGER_A, FINGER_B), FINGER_LINKS, strict=True):
        _revolute(robot, finger, GRIPPER_BASE_LINK, link)
    ET.indent(robot)
    return ET.tostring(robot, encoding="unicode")


def urdf_path() -> Path:
    """Write the URDF into the temporary folder, once per content and user, and return its path."""
    text = urdf()
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return generated.write(f"crane_x7-{digest}.urdf", text)


def _link(robot: ET.Element, body: Body) -> None:
    link = ET.SubElement(robot, "link", name=body.link)
    longest = max(body.boxes, key=lambda box: max(box.size_m))
    _inertial(link, body.mass_kg, longest.size_m, longest.centre_m)
    for number, box in enumerate(body.boxes):
        kinds = ("visual", "collision") if box.solid else ("visual",)
        for kind in kinds:
            element = ET.SubElement(link, kind, name=f"{body.link}_{kind}_{number}")
            ET.SubElement(
                element, "origin", xyz=_text(box.centre_m), rpy=_text((0, box.pitch_rad, 0))
            )
            geometry = ET.SubElement(element, "geometry")
            ET.SubElement(geometry, "box", size=_text(box.size_m))
            if kind == "visual":
                material = ET.SubElement(element, "material", name=f"colour {box.colour}")
                ET.SubElement(material, "color", rgba=box.colour)


def _inertial(link: ET.Element, mass: float, size: Vector3, centre: Vector3 = (0, 0, 0)) -> None:
    """The inertia of a solid box of this mass, at least 1e-5 kg·m²: lighter fingers make the solver
    oscillate."""
    inertial = ET.SubElement(link, "inertial")
    ET.SubElement(inertial, "origin", xyz=_text(centre), rpy="0 0 0")
    ET.SubElement(inertial, "mass", value=f"{mass:g}")
    squares = [side * side for side in size]
    moments = [max(1e-5, mass / 12 * (sum(squares) - square)) for square in squares]
    values = dict(zip(("ixx", "iyy", "izz"), (f"{moment:.6g}" for moment in moments), strict=True))
    ET.SubElement(inertial, "inertia", values | {"ixy": "0", "ixz": "0", "iyz": "0"})


def _joint(
    robot: ET.Element, name: str, kind: str, parent: str, child: str, origin: Vector3
) -> ET.Element:
    joint = ET.SubElement(robot, "joint", name=name, type=kind)
    ET.SubElement(joint, "origin", xyz=_text(origin), rpy="0 0 0")
    ET.SubElement(joint, "parent", link=parent)
    ET.SubElement(joint, "child", link=child)
    return joint


def _revolute(robot: ET.Element, figures: Joint, parent: str, child: str) -> None:
    joint = _joint(robot, figures.name, "revolute", parent, child, figures.origin_m)
    ET.SubElement(joint, "axis", xyz=_text(figures.axis))
    ET.SubElement(
        joint,
        "limit",
        lower=f"{figures.lower_rad:g}",
        upper=f"{figures.upper_rad:g}",
        effort=f"{figures.effort_nm:g}",
        velocity=f"{VELOCITY_RAD_S[0]:g}",
    )


def _text(vector: Vector3) -> str:
    return " ".join(f"{value:g}" for value in vector)
