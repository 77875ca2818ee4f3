"""Videos to clips and batches."""
