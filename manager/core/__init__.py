"""The pure core: no I/O, no clock, no threads, no logging; `(event, now)` in, effects out."""
