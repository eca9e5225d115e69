"""Models that ship with quantbench: one file or folder each."""
