"""Files and words to arrays, and back; nothing here imports jax."""
