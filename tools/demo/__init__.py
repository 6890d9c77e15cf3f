"""What `make demo` shows: eight programs, one supervisor, a real language model on this machine. See `story`."""
