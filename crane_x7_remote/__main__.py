"""`python -m crane_x7_remote` is `crane-x7-remote`."""

import sys

from crane_x7_remote.cli import main

sys.exit(main())
