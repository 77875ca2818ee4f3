"""Pictures of masks, predictions and runs."""
