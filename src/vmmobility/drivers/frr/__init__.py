"""FRR beside a router agent: a typed plan, the configuration made of it, and its check."""
