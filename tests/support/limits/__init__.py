"""AWS's limits between Herald and the emulators: `proxy.limiting_proxy` runs them.

The emulators accept everything, so only this machine's speed limits a sender. Behind the proxy
DynamoDB throttles by table and by partition, and `@connections` has API Gateway's quota. The limits
are parameters: scaled down far enough, they are reached long before the machine's own.
"""
