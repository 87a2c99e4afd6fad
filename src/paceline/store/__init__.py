"""Run folders: live JSON-lines spools, sealed into Parquet, read through DuckDB."""
