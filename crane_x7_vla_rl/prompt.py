"""The only prompt template: an instruction in words comes in, the text for the tokenizer leaves.

Text is what OpenVLA was trained on; the token 29871 that follows it is added where token ids are
put into a sequence.
"""

from __future__ import annotations

from typing import Final

BOS_TOKEN: Final = 1
"""Starts every sequence, before the image."""
PROMPT_END_TOKEN: Final = 29871
"""Llama's lone blank, which stands between prompt and action."""
STOP_TOKEN: Final = 2
"""Follows the action in training."""


def prompt(instruction: str) -> str:
    """Return the prompt for `instruction`, in lower case; raises ValueError for a blank one."""
    words = instruction.strip().lower()
    if not words:
        raise ValueError(f"instruction is {instruction!r}, expected words that say what to do")
    return f"In: What action should the robot take to {words}?\nOut:"
