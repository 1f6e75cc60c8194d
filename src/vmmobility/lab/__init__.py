"""The lab: fabrics of network namespaces as data, scenarios, probes and reports (docs/lab.md)."""
