"""The kinds of table: one file each, holding a TableKind that ``quantbench.tables`` finds."""
