"""Packed checkpoints that gptqmodel makes and transformers runs."""
