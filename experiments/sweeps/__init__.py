"""Named sweeps: one readable definition each."""
