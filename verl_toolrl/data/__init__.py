"""Rows in, parquet out: the checks of a file, and converters from other layouts to verl's RL schema."""
