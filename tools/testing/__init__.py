"""Fakes for tests and load tests, a part of the product."""
