"""Durable state: an append-only journal of keys and JSON values, and its in-memory twin."""
