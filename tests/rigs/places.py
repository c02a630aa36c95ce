"""Where things lie in a checkout, so that no test counts the folders above itself."""

from pathlib import Path
from typing import Final

RIGS: Final = Path(__file__).resolve().parent
FIXTURES: Final = RIGS.parent / "fixtures"
ROOT: Final = RIGS.parents[1]
