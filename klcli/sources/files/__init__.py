"""Files that other programs made: logits, llama.cpp's base files, top log-probabilities."""
