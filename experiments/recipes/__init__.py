"""Named recipes: one readable definition each."""
