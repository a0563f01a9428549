"""Ready-made tools, one file each, to use as they are or to copy. Imported as `verl_toolrl.tools`."""
