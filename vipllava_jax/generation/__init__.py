"""From a prompt to an answer, a chunk of tokens at a time."""
