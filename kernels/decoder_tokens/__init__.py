"""Decoder input: visible tokens, then mask tokens, each with its position."""
