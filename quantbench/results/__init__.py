"""Stored results: the schema, the parquet files, and the rows read from them. Nothing else touches parquet."""
