"""Training: the loop, pre-training, fine-tuning."""
