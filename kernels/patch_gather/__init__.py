"""Masked-token gather: only the wanted tubelets of a clip, scaled and normalised on the way."""
