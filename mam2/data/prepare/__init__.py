"""From downloaded videos to a manifest."""
