"""Inputs at random: `make fuzz`."""
