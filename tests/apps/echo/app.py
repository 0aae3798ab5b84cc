"""An app that records the events of its functions, and runs code that a test sends.

Every event is appended to the file in the variable EVENTS. The message handler runs a message's
text as Python, so a test can make it slow, fail or exit.
"""

import json
import os

from chalice.app import AuthResponse, Chalice, Response

app = Chalice(app_name="echo")
app.experimental_feature_flags.update(["WEBSOCKETS"])


def record(event):
    with open(os.environ["EVENTS"], "a") as events:
        events.write(json.dumps(event) + "\n")


@app.lambda_function()
def connect_authorizer(event, context):
    record(event)
    query = event["queryStringParameters"]
    match query.get("authorizer"):
        case "raise":
            raise RuntimeError("broken")
        case "nonsense":
            return {"principalId": "nobody"}
        case "nested":
            verdict = {"context": {"nested": {}}}
        case "elsewhere":
            verdict = {"resource": event["methodArn"].replace("$connect", "other")}
        case _:
            verdict = {"context": {"colour": "green", "number": 7}}
    statement = {
        "Action": "execute-api:Invoke",
        "Effect": "Allow",
        "Resource": verdict.pop("resource", event["methodArn"]),
    }
    return {
        "principalId": "somebody",
        "policyDocument": {"Version": "2012-10-17", "Statement": [statement]},
        **verdict,
    }


@app.on_ws_connect()
def connect(event):
    raw = event.to_dict()
    record(raw)
    query = raw.get("queryStringParameters", {})
    exec(query.get("connect", ""))
    headers = {"Sec-WebSocket-Protocol": query["subprotocol"]} if "subprotocol" in query else {}
    return {"statusCode": int(query.get("status", 200)), "headers": headers}


@app.on_ws_message()
def message(event):
    raw = event.to_dict()
    record(raw)
    exec(raw["body"])
    return {"statusCode": 200, "body": "this goes nowhere"}


@app.on_ws_disconnect()
def disconnect(event):
    record(event.to_dict())


@app.authorizer()
def rest_authorizer(request):
    if request.token == "raise":
        raise RuntimeError("broken")
    return AuthResponse([request.token], "somebody", {"colour": "green"})


@app.route("/open/{name}", methods=["GET", "POST"], content_types=["*/*"])
def open_route(name):
    record(app.current_request.to_original_event())
    return Response("öffen", {"X-One": "1", "X-Two": ["a", "b"], "Content-Type": "text/plain"}, 201)


@app.route("/closed", methods=["GET"], authorizer=rest_authorizer)
def closed_route():
    return app.current_request.context["authorizer"]


@app.route("/exit", methods=["GET"])
def exit_route():
    os._exit(3)
