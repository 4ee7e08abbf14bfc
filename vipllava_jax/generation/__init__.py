"""Generation: prefill, decoding in chunks, sampling, and stop strings."""
