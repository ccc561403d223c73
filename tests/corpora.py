"""Where the test data of other projects is: CONTRIBUTING.md says what is in that folder, and what is absent is skipped."""

from __future__ import annotations

import os
from pathlib import Path

CORPORA = Path(os.environ.get("ROUTED_CORPORA") or Path(__file__).resolve().parents[2] / "shared" / "corpora")
