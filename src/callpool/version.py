"""The version, read by the build and by `callpool --version`."""

__version__ = "0.1.0"
