"""For what starts processes or imports verl: without a GPU."""

import os

os.environ.setdefault("VERL_PLATFORM", "cpu")
