"""Models that llama.cpp runs, and the GGUF files that it reads."""

REQUIRES = ("llama_cpp", "gguf")
"""Modules that running and making GGUF files needs."""
