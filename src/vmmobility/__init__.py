"""Move running virtual machines between routed racks without changing their IP addresses."""

__version__ = "0.1.0"
