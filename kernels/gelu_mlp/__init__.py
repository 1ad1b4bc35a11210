"""The block's MLP with bias and exact GELU inside the matrix products."""
