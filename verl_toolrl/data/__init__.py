"""Data sets: rows in, checks, Parquet out."""
