"""The network: token grid, masks, layers, the autoencoder and the classifier."""
