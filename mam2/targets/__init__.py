"""Prediction targets: appearance and motion."""
