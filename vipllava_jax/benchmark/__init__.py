"""Measures the speed of the model on this device, and compares it to the device's limits."""
