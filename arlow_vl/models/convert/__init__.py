"""Llama-shaped checkpoints in and out: safetensors folders and GGUF files."""
