"""Models that come with quantbench: one file or folder each."""
