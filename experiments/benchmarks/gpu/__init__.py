"""What only a GPU can tell, in sections of a quarter of an hour together (see `__main__`)."""
