"""Message and option formats: bytes to values and back, nothing else (docs/protocol.md)."""
