"""What runs a model: transformers, llama.cpp, gptqmodel on transformers, and OpenAI-compatible endpoints."""
