"""Videos as sources of frames."""
