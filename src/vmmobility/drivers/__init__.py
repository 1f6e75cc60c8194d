"""The world behind small interfaces: the kernel's data plane and the hypervisors."""
