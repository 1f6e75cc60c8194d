"""Hypervisors behind one interface: QEMU over QMP, and the lab's light stand-in."""
