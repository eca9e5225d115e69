"""Models that transformers and torch run."""
