"""The data plane driver of Linux: taps, routes, filters and the user-space tunnel relay.

Light on purpose: the relay process imports this package and must start fast.
"""
