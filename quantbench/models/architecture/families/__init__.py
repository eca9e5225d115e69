"""Families of architectures: one file each, or one for several that differ little."""
