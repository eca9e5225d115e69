"""What is kept: the schema, the parquet files, and the rows that are read from them. Nothing else touches parquet."""
