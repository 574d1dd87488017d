"""A page of samples as the model sees them."""
