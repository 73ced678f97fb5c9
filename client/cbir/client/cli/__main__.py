"""``python -m cbir.client.cli``: the same as the program ``cbir``."""

from __future__ import annotations

import sys

from cbir.client.cli.program import main

if __name__ == "__main__":
    sys.exit(main())
