"""Residual add and layer norm in one pass."""
