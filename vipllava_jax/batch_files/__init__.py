"""Files of questions, which an engine answers one line after another, whatever interrupts it."""
