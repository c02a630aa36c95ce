"""The board on paper: a board and a paper size → the bytes of a PDF or PNG of exact size.

A PDF is written here rather than by a library: one page with one picture and five lines of text.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from crane_x7_remote.calibrate.board import COLUMNS, ROWS, Board
from crane_x7_remote.errors import CalibrationError

PAPERS_MM: Final = {"a4": (297.0, 210.0), "letter": (279.4, 215.9), "a3": (420.0, 297.0)}
"""Landscape."""
MARGIN_MM: Final = 8.0
"""Printers leave about 5 mm white."""
TEXT_MM: Final = 6.0
"""Room for the lines above and below the board."""
PT_PER_MM: Final = 72 / 25.4
PX_PER_SQUARE: Final = 350
"""About 300 dots per inch at 30 mm."""


@dataclass(frozen=True)
class Sheet:
    """One board on one landscape paper."""

    board: Board
    paper: str

    @property
    def corner_mm(self) -> tuple[float, float]:
        """Where the board's upper left corner is, from that of the paper."""
        paper_mm = PAPERS_MM[self.paper]
        left, top = (
            (side - 1e3 * size) / 2 for side, size in zip(paper_mm, self.board.size_m, strict=True)
        )
        return left, top

    def check(self) -> None:
        """Raise CalibrationError if the board does not fit on the paper."""
        left, top = self.corner_mm
        if left < MARGIN_MM or top < MARGIN_MM + TEXT_MM:
            width, height = (1e3 * side for side in self.board.size_m)
            room = [side - 2 * MARGIN_MM for side in PAPERS_MM[self.paper]]
            most = int(min(room[0] / COLUMNS, (room[1] - 2 * TEXT_MM) / ROWS))
            raise CalibrationError(
                f"a board of {width:.0f} x {height:.0f} mm does not fit on {self.paper}; use"
                f" --square-mm {most} or less, or a larger --paper"
            )

    def lines(self) -> tuple[str, str]:
        """Return the text above and below the board."""
        square_mm = 1e3 * self.board.square_m
        return (
            "ORIGIN, the corner below: nearest to the robot, on its left.  ARROW X along this edge:"
            " away from the robot  --->",
            f"Print at 100 %, no scaling. Then measure: {COLUMNS} squares are"
            f" {COLUMNS * square_mm:g} mm, one is {square_mm:g} mm"
            f" (calibrate run --square-mm {square_mm:g}).",
        )


def pdf(sheet: Sheet) -> bytes:
    """Return a PDF of one page; raises CalibrationError if the board does not fit."""
    sheet.check()
    wide, high = (PT_PER_MM * side for side in PAPERS_MM[sheet.paper])
    left, top = (PT_PER_MM * side for side in sheet.corner_mm)
    across, down = (PT_PER_MM * 1e3 * side for side in sheet.board.size_m)
    above, below = sheet.lines()
    bottom = high - top - down
    content = (
        f"q {across:.4f} 0 0 {down:.4f} {left:.4f} {bottom:.4f} cm /Board Do Q\n"
        f"BT /Text 9 Tf {left:.2f} {high - top + 6:.2f} Td ({above}) Tj ET\n"
        f"BT /Text 9 Tf {left:.2f} {bottom - 13:.2f} Td ({_escaped(below)}) Tj ET\n"
    ).encode("ascii")
    grey = sheet.board.picture(PX_PER_SQUARE)
    bits = np.packbits(grey > 127, axis=1).tobytes()
    rows, columns = grey.shape
    picture = zlib.compress(bits, 9)
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 {wide:.4f} {high:.4f}] /Contents 4 0 R"
        " /Resources << /XObject << /Board 5 0 R >> /Font << /Text 6 0 R >> >> >>".encode(),
        b"<< /Length %d >>\nstream\n%sendstream" % (len(content), content),
        b"<< /Type /XObject /Subtype /Image /Width %d /Height %d /BitsPerComponent 1"
        b" /ColorSpace /DeviceGray /Filter /FlateDecode /Length %d >>\nstream\n%s\nendstream"
        % (columns, rows, len(picture), picture),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    return _assembled(objects)


def _escaped(text: str) -> str:
    return text.replace("(", r"\(").replace(")", r"\)")


def _assembled(objects: list[bytes]) -> bytes:
    """Return the PDF file of the objects, numbered from 1, the first being the catalogue."""
    written = b"%PDF-1.4\n"
    places = []
    for number, content in enumerate(objects, 1):
        places.append(len(written))
        written += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    size = len(objects) + 1
    return written + (
        b"xref\n0 %d\n0000000000 65535 f \n%strailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n"
        b"%%%%EOF\n" % (size, table, size, len(written))
    )


def png(sheet: Sheet) -> bytes:
    """Return a PNG of the whole paper that states its dots per metre; raises CalibrationError."""
    sheet.check()
    px_per_mm = PX_PER_SQUARE / (1e3 * sheet.board.square_m)
    wide, high = (round(px_per_mm * side) for side in PAPERS_MM[sheet.paper])
    left, top = (round(px_per_mm * side) for side in sheet.corner_mm)
    page = np.full((high, wide), 255, np.uint8)
    board = sheet.board.picture(PX_PER_SQUARE)
    page[top : top + board.shape[0], left : left + board.shape[1]] = board
    _write(page, sheet.lines(), left, (top - 30, top + board.shape[0] + 60))
    _, encoded = cv2.imencode(".png", page)
    content: bytes = encoded.tobytes()
    dots_per_m = round(1e3 * px_per_mm)
    chunk = b"pHYs" + struct.pack(">IIB", dots_per_m, dots_per_m, 1)
    head = 8 + 25  # signature and IHDR, which must come first
    resolution = struct.pack(">I", 9) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return content[:head] + resolution + content[head:]


def _write(
    page: npt.NDArray[np.uint8], lines: tuple[str, str], left: int, places: tuple[int, int]
) -> None:
    for text, baseline in zip(lines, places, strict=True):
        cv2.putText(page, text, (left, baseline), cv2.FONT_HERSHEY_SIMPLEX, 1.1, 0, 2, cv2.LINE_AA)
