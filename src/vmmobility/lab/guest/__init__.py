"""The lab's real guest: a Debian kernel, a busybox initramfs and a small echo daemon."""
