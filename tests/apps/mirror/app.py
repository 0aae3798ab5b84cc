"""An app that echoes each message, as the Autobahn test suite expects from a server."""

import contextlib
import os

import boto3
from chalice.app import Chalice

app = Chalice(app_name="mirror")
app.experimental_feature_flags.update(["WEBSOCKETS"])
connections = boto3.client(
    "apigatewaymanagementapi", endpoint_url=os.environ["HERALD_MANAGEMENT_ENDPOINT"]
)


@app.on_ws_message()
def message(event):
    with contextlib.suppress(connections.exceptions.GoneException):  # the client closed meanwhile
        connections.post_to_connection(ConnectionId=event.connection_id, Data=event.body.encode())
