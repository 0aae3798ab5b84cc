"""The local gateway: API Gateway, Lambda and the AWS services behind them, on one machine.

It knows the app as AWS does, through its handlers and the events that they get; it never imports
`chalicelib`.
"""
