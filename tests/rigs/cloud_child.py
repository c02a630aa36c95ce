"""A run in its own process, for tests that kill it: python cloud_child.py FARM URL KEY"""

from __future__ import annotations

import sys
from pathlib import Path

from cloud.server import PATIENCE
from cloud_farm import plan_in

from crane_x7_remote.cloud import attempts
from crane_x7_remote.cloud.ledger import Ledger
from crane_x7_remote.cloud.verda import Verda


def main() -> None:
    """Run the plan that Farm.plan makes without changes."""
    folder, url, key = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    attempts.run(plan_in(folder), Verda("client", key, url, PATIENCE), Ledger(folder / "ledger"))


if __name__ == "__main__":
    main()
