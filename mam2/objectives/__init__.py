"""Pre-training methods: one config and one module each."""
