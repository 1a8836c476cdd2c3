"""GGUF files, run by llama.cpp itself: the numbers of those who serve with it."""
