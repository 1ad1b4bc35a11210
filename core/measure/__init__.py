"""What a model is worth: probes, multi-view evaluation, reconstructions."""
