"""Models handed to others: ONNX and torch.export files, the Hugging Face hub, AutoModel, MTEB."""
