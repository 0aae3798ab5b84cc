"""Senders beside each other in a Herald whose share of AWS is small.

`neighbourhood` runs a Herald with the gateway, its functions and the emulators in processes of
their own, behind the proxy of `tests.support.limits`. In one tenant a user does the worst that the
limits allow (`loud`), and meanwhile others send now and then (`neighbour`).
"""
