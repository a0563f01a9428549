"""verl on a machine without a GPU. Imported only where `VERL_PLATFORM=cpu` chooses it."""
