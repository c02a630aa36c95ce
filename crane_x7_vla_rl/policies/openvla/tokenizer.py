"""Prompts, encoded by the checkpoint's tokenizer.json. An instruction in words → ids.

The `tokenizers` library reads only this file of the checkpoint.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch
from tokenizers import Tokenizer

from crane_x7_vla_rl.file_errors import why
from crane_x7_vla_rl.policies.openvla.errors import CheckpointError
from crane_x7_vla_rl.prompt import BOS_TOKEN, PROMPT_END_TOKEN, prompt

KEPT_PROMPTS = 256
MARK_BEGINS = ("<", "[")
"""Prefixes of tokens for turns of a dialogue, even if the tokenizer marks them as plain."""


class PromptTokenizer:
    """Encodes instructions as `input_ids`, the prompt ids of a rollout."""

    def __init__(self, path: Path) -> None:
        """Read `tokenizer.json`; raises CheckpointError."""
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise CheckpointError(f"{path} cannot be read as a tokenizer: {why(error)}") from error
        # `</s>` in an instruction is four characters, and not the end of the prompt.
        self._tokenizer.encode_special_tokens = True
        self._marks = {
            number: token.content
            for number, token in self._tokenizer.get_added_tokens_decoder().items()
            if token.special or token.content[:1] in MARK_BEGINS
        }
        self._ids = lru_cache(KEPT_PROMPTS)(self._encode)

    def __call__(self, instruction: str) -> torch.Tensor:
        """Return (L,) int64: BOS, then the prompt's ids, without the final 29871.

        Raises ValueError for an instruction that is blank, or contains control characters or a
        special token that the tokenizer does not read as plain text.
        """
        return torch.tensor(self._ids(instruction), dtype=torch.int64)

    def reachable(self) -> list[int]:
        """Return every id that a prompt can contain, ascending."""
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        return sorted({*vocabulary.values(), BOS_TOKEN, PROMPT_END_TOKEN})

    def _encode(self, instruction: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(prompt(instruction)).ids
        if ids[:1] != [BOS_TOKEN]:
            ids = [BOS_TOKEN, *ids]
        if ids[-1] == PROMPT_END_TOKEN:
            ids.pop()
        if marks := self._marks.keys() & set(ids[1:]):
            raise ValueError(
                f'instruction is "{instruction[:60]}"; "{self._marks[min(marks)]}" in it is a'
                " special token of the model's tokenizer, expected words only"
            )
        return ids
