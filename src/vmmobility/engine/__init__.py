"""Pure state machines, one a role: no sockets, clock, randomness, files or asyncio."""
