"""Masked patch loss: target statistics, gather and loss without materialised labels."""
