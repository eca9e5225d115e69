"""Families of architectures: one file each, or several that differ little."""
