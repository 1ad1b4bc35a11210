"""Training: one loop for pre-training and fine-tuning, its optimisers, state and processes."""
