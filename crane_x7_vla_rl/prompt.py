"""The only prompt template: an instruction in words → the text for the tokenizer.

It is the text that OpenVLA was trained on; the token 29871 after it is added when token ids are
joined to a sequence.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

BOS_TOKEN: Final = 1
"""Starts every sequence, before the image."""
PROMPT_END_TOKEN: Final = 29871
"""Llama's single blank, between prompt and action."""
STOP_TOKEN: Final = 2
"""Follows the action in training."""
MAX_INSTRUCTION_BYTES: Final = 1024
"""Bytes of UTF-8, for an instruction from a bridge or the environment."""
JOINERS: Final = "\u200c\u200d"
"""Format characters that are part of words in some scripts, and of emoji."""
LINE_SPACE: Final = re.compile("[ ]*[\t\n\v\f\r\x1c-\x1f\x85\u2028\u2029]+[ ]*")
"""White space other than plain blanks, with the plain blanks around it."""


def clean_instruction(text: str) -> str:
    """Return an instruction in one line, without blanks at its ends.

    Line breaks and tabs become blanks: none may end the instruction's part of the prompt. Raises
    ValueError if no words remain, and for control, format and surrogate characters.
    """
    words = LINE_SPACE.sub(" ", text.strip()).strip()
    if not words:
        raise ValueError(f"instruction is {text[:60]!r}, expected words that name a task")
    if words.isprintable():
        return words
    for place, letter in enumerate(words, 1):
        if unicodedata.category(letter) in ("Cc", "Cf", "Cs") and letter not in JOINERS:
            raise ValueError(
                f"instruction contains the control character U+{ord(letter):04X} at place {place};"
                " expected words only"
            )
    return words


def prompt(instruction: str) -> str:
    """Return the prompt for `instruction`, in lower case; raises ValueError, see above."""
    words = clean_instruction(instruction).lower()
    return f"In: What action should the robot take to {words}?\nOut:"
