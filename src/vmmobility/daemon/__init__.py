"""Assembly: configuration, keys, the UDP endpoint, the pump that runs an engine, each role."""
