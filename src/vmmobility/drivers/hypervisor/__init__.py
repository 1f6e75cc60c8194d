"""Hypervisors behind one interface: QEMU, ours and others', and the lab's light stand-in."""
