"""ViP-LLaVA in JAX: this file is the list of the public API; each name is imported when it is first used."""
