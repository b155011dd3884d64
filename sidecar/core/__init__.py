"""The pure part: deciding does no I/O, reads no clock, logs nothing and is never async."""
