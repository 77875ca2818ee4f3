"""What an encoder or a classifier is used for after training."""
