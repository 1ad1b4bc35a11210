"""Checkpoints: our format, the official and the Hugging Face layouts both ways, the published ones."""
