"""The demo: a local page on which a model can be tried."""
