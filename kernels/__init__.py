"""Tensors in, tensors out: the operations under the ViT core, each with one public function."""
