"""What is scored: corpora, vocabularies, and the windows that models read."""
