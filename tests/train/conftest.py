"""What the tests of the training package share."""

from __future__ import annotations

import sys
from pathlib import Path

# `toy_transport` is a module beside the tests, not a test itself.
sys.path.insert(0, str(Path(__file__).parent))
