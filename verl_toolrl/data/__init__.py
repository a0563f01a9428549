"""Rows in, parquet out: converters from other layouts to verl's RL schema (`verl_toolrl.schema`)."""
