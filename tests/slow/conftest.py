"""For learning runs and slow checks: without a GPU."""

import os

os.environ.setdefault("VERL_PLATFORM", "cpu")
