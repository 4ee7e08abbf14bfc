"""The demo: a synthetic world of simple shapes, and the bundled model that was trained on it."""
