"""The model: equations over plain params."""
