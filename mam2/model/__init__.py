"""The encoder, the regressor and the decoders."""
