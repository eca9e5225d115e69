"""The kinds of table: one file each, that holds a TableKind; ``quantbench.tables`` finds them."""
