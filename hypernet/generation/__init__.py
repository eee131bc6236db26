"""Images out of a model."""
