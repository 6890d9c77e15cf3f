"""The workshop: makes calls, remembers nothing."""
