"""How fast the model runs here, and how much of what the device can do that is."""
