"""Hugging Face models: causal and masked ones, from a folder, the Hub or a GGUF file."""
