"""Self-attention over packed q, k, v: packed in, packed gradient out."""
