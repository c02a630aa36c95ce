"""Camera images. CompressedImage messages (dicts) → `EncodedFrame` → pixels. Pure, no clock.

An image that is not in colour is refused before it is decoded: a policy would take distances for
an image of the scene.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass

import simplejpeg

from crane_x7_remote.rosbridge.messages import Message, MessageError, read_stamp
from crane_x7_remote.rosbridge.protocol import brief
from crane_x7_vla_rl.images import JPEG_START, PNG_SIGNATURE, PictureError, decode_picture
from crane_x7_vla_rl.types import Image

MAX_IMAGE_PIXELS = 4096 * 4096
DEPTH_FORMAT = re.compile(
    r"(8S|16[US]|32[SF]|64F)C\d*\b|mono16\b|.*(compressedDepth|\brvl\b)", re.I | re.S
)
"""Formats of depth images and the like: OpenCV's encodings of more than 8 bits, and the format of
compressed_depth_image_transport ("16UC1; compressedDepth png")."""
GREY_FORMAT = re.compile(r"(mono8|8UC1)\b", re.I)
DEPTH_HEADER_BYTES = 12
"""Size of the header that compressed_depth_image_transport puts before its PNG (ConfigHeader)."""
GREY_COLOUR_TYPES = (0, 4)
"""Colour types of a PNG: grey, grey with alpha (byte 25, in IHDR)."""
COLOUR_TOPIC = (
    "set CAMERA_TOPIC (WRIST_CAMERA_TOPIC for a wrist camera) to the colour image, such as"
    " /camera/color/image_raw/compressed (newer realsense2_camera:"
    " /camera/camera/color/image_raw/compressed)"
)


@dataclass(frozen=True, eq=False, slots=True)
class EncodedFrame:
    """A camera image as received, not yet decoded."""

    image_bytes: bytes
    format: str
    stamp_s: float
    """Header stamp, on the robot's clock; 0 if the camera does not set it."""
    arrival_s: float
    """When it arrived, on our monotonic clock."""


def from_message(message: Message, arrival_s: float) -> EncodedFrame:
    """Return a CompressedImage undecoded; its data may be a byte string or base64 text.

    A raw Image, and an image that is not in colour by its format or PNG header, raise
    MessageError: a policy would take a depth image for an image of the scene.
    """
    if "encoding" in message or "step" in message:
        raise MessageError(
            f"a raw sensor_msgs/Image came (encoding {brief(message.get('encoding'))}), expected a"
            f" sensor_msgs/CompressedImage; {COLOUR_TOPIC}"
        )
    name = message.get("format")
    picture_format = name if isinstance(name, str) else ""
    _check_format(picture_format)
    content = message.get("data")
    if isinstance(content, str):
        try:
            content = base64.b64decode(content, validate=True)
        except (binascii.Error, ValueError) as error:
            raise MessageError(f"CompressedImage.data is not base64 text: {error}") from error
    if not isinstance(content, bytes) or not content:
        raise MessageError(f"CompressedImage.data is {brief(content)}, expected bytes or base64")
    _check_png_colour(content, picture_format)
    return EncodedFrame(content, picture_format, read_stamp(message), arrival_s)


def is_depth_topic(topic: str) -> bool:
    """Return whether, by its name, a topic carries images of compressed_depth_image_transport."""
    return topic.rstrip("/").endswith("/compressedDepth")


def _check_format(picture_format: str) -> None:
    text = picture_format[:200].strip()
    if DEPTH_FORMAT.match(text):
        raise _no_colour("a depth image", picture_format)
    if GREY_FORMAT.match(text):
        raise _no_colour("a greyscale image", picture_format)


def _check_png_colour(content: bytes, picture_format: str) -> None:
    """Check the PNG's own header: the text of the format may be wrong."""
    if content.startswith(PNG_SIGNATURE, DEPTH_HEADER_BYTES):
        raise _no_colour("a depth image after a depth header", picture_format)
    if not content.startswith(PNG_SIGNATURE) or len(content) < 26:
        return
    bits, colour_type = content[24], content[25]
    if colour_type in GREY_COLOUR_TYPES:
        kind = "a depth image" if bits > 8 else "a greyscale image"
        raise _no_colour(f"{kind} (PNG of {bits} bits without colour)", picture_format)


def _no_colour(what: str, picture_format: str) -> MessageError:
    return MessageError(
        f"the camera sends {what}, format {brief(picture_format)}; expected a colour image:"
        f" {COLOUR_TOPIC}"
    )


def decode_image(encoded: EncodedFrame, max_pixels: int = MAX_IMAGE_PIXELS) -> Image:
    """Return (H, W, 3) uint8 RGB. The header is checked first, so that a small message cannot
    allocate gigabytes; a truncated image raises MessageError instead of decoding to grey."""
    content = encoded.image_bytes
    try:
        if content.startswith(PNG_SIGNATURE):
            _check_png_colour(content, encoded.format)
            _check_size(*_png_size(content), max_pixels)
        elif content.startswith(JPEG_START):
            height, width, space, _ = simplejpeg.decode_jpeg_header(content, strict=True)
            _check_size(width, height, max_pixels)
            if space == "Gray":
                raise _no_colour("a greyscale image (JPEG with one component)", encoded.format)
        else:
            raise MessageError(
                f"image of format {brief(encoded.format)} begins with {content[:8]!r},"
                " expected JPEG or PNG"
            )
        return decode_picture(content)
    except PictureError as error:
        raise MessageError(str(error)) from error
    except ValueError as error:
        raise MessageError(f"JPEG of {len(content)} bytes cannot be decoded: {error}") from error


def _png_size(content: bytes) -> tuple[int, int]:
    if len(content) < 24:
        raise MessageError(f"PNG of {len(content)} bytes is truncated: its header is not complete")
    return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if not 0 < width * height <= max_pixels:
        raise MessageError(f"image is {width}×{height}, expected 1 to {max_pixels} pixels")
