"""The tests. A package, so that a test can import `tests.ground` without the checkout on sys.path."""
