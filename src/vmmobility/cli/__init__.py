"""The command `vmmob`: people's way to the API, to configuration and keys, and to the daemons."""
