"""Training: one loop (engine.py), and what pre-training and fine-tuning hand to it."""
