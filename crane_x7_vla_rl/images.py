"""The only decoder of images. JPEG or PNG bytes → (H, W, 3) uint8 RGB, complete or an error."""

from __future__ import annotations

from typing import Final

import numpy as np
import simplejpeg

from crane_x7_vla_rl.types import Image

JPEG_START: Final = b"\xff\xd8"
PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
PNG_END: Final = b"IEND\xaeB`\x82"


class PictureError(ValueError):
    """Bytes are not a complete image; names their number and the problem."""


def decode_picture(content: bytes) -> Image:
    """Return the image; raises PictureError for a truncated one, which OpenCV fills with grey."""
    if content.startswith(PNG_SIGNATURE):
        import cv2  # not above: commands that decode nothing would import it, too

        if not content.rstrip(b"\0").endswith(PNG_END):
            raise PictureError(f"PNG of {len(content)} bytes is truncated: no IEND")
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        if image is None:
            raise PictureError(f"PNG of {len(content)} bytes cannot be decoded")
        return np.ascontiguousarray(image[:, :, ::-1], dtype=np.uint8)
    if not content.startswith(JPEG_START):
        raise PictureError(f"image begins with {content[:8]!r}, expected JPEG or PNG")
    try:
        decoded: Image = simplejpeg.decode_jpeg(content, colorspace="RGB", strict=True)
    except ValueError as error:
        raise PictureError(f"JPEG of {len(content)} bytes cannot be decoded: {error}") from error
    return decoded
