"""Measurements that need a GPU, in sections that take a quarter of an hour together (see `__main__`)."""
