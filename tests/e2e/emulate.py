"""Runs an AWS that can be deployed to: the emulator with all its services, on a given port.

It adds what the emulator lacks of AWS, so that the deployment under test is the real one. SAM
templates need the Python of `.venv/e2e`, which has their translator. The emulator ends with its
standard input.
"""

import json
import os
import sys
import threading
from contextvars import ContextVar
from typing import Any

import uvicorn

DEFAULT_IDENTITY_SOURCE = ["$request.header.Authorization"]
"""The identity source that the emulator assumes if an authorizer names none."""


def main(port: str) -> None:
    os.environ.update(
        GATEWAY_PORT=port,
        BIND_HOST="127.0.0.1",
        MINISTACK_HOST="127.0.0.1",
        MINISTACK_ACCOUNT_ID="000000000000",
        LOG_LEVEL="ERROR",
        IOT_MTLS_ENABLED="0",
        SFTP_ENABLED="0",
    )

    def end_with_starter() -> None:
        sys.stdin.buffer.read()
        os._exit(0)

    threading.Thread(target=end_with_starter, daemon=True).start()
    from ministack.app import app

    complete_cloudformation()
    complete_rest_apis()
    complete_stages()
    complete_authorizers()
    complete_handshakes()
    hurry_lambda()
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(port),
        ws="websockets-sansio",  # by default one that hides the subprotocols from the functions
        log_level="error",
        access_log=False,
    )


def complete_cloudformation() -> None:
    """Accept two kinds of resources that the emulator refuses, without effect.

    These are deployments of a WebSocket API (in the emulator a changed route takes effect at once)
    and alarms over metric math. A number in a parameter stays text in the emulator, which then
    can't compare a queue's number of workers with it.
    """
    from ministack.services.cloudformation import provisioners

    handlers = provisioners._RESOURCE_HANDLERS

    def nothing(logical_id: str, *_: Any) -> tuple[str, Any]:
        return logical_id, {}

    def alarm(logical_id: str, properties: Any, stack: str) -> Any:
        create = nothing if "Metrics" in properties else simple
        return create(logical_id, properties, stack)

    def mapping(logical_id: str, properties: Any, stack: str) -> Any:
        scaling = properties.get("ScalingConfig")
        if scaling:
            properties = {
                **properties,
                "ScalingConfig": {name: int(value) for name, value in scaling.items()},
            }
        return plain_mapping(logical_id, properties, stack)

    plain_mapping = handlers["AWS::Lambda::EventSourceMapping"]["create"]
    handlers["AWS::Lambda::EventSourceMapping"]["create"] = mapping
    simple = handlers["AWS::CloudWatch::Alarm"]["create"]
    handlers["AWS::CloudWatch::Alarm"]["create"] = alarm
    handlers["AWS::ApiGatewayV2::Deployment"] = {
        "create": nothing,
        "delete": lambda *_: None,
    }


def complete_rest_apis() -> None:
    """Add ImportRestApi and PutRestApi, with which Chalice makes a REST API.

    The emulator itself reads OpenAPI documents only for CloudFormation.
    """
    from ministack.services import apigateway_v1 as service

    create, handle = service._create_rest_api, service.handle_request

    def create_or_import(data: Any) -> Any:
        if "swagger" not in data:
            return create(data)
        return service._get_rest_api(service._import_rest_api(data))

    async def handle_put(method: str, path: str, headers: Any, body: Any, query: Any) -> Any:
        parts = path.strip("/").split("/")
        if (method, parts[0], len(parts)) != ("PUT", "restapis", 2):
            return await handle(method, path, headers, body, query)
        replace(parts[1], json.loads(body))
        return service._get_rest_api(parts[1])

    def replace(api: str, document: Any) -> None:
        resources = service._resources[api]
        for key in [key for key, one in resources.items() if one["path"] != "/"]:
            del resources[key]
        schemes = service._import_security_schemes(api, document)
        for path, item in document["paths"].items():
            service._import_path_item(api, path, item, schemes)

    service._create_rest_api = create_or_import
    service.handle_request = handle_put


def complete_stages() -> None:
    """Add DeleteRouteSettings, for which the emulator would delete the stage."""
    from ministack.services import apigateway as service

    handle = service.handle_request

    async def handle_or_delete(method: str, path: str, *rest: Any) -> Any:
        match (method, path.strip("/").split("/")):
            case ("DELETE", ["v2", "apis", api, "stages", stage, "routesettings", key]):
                service._stages[api][stage]["routeSettings"].pop(key, None)
                return 204, {}, b""
        return await handle(method, path, *rest)

    service.handle_request = handle_or_delete


def complete_authorizers() -> None:
    """Let the authorizer of `$connect` behave as on AWS.

    Without identity sources it is asked for every handshake; the emulator requires the header.
    If it raises `Unauthorized`, the answer is 401.
    """
    from ministack.services import apigateway as service

    find, authorize, run = (
        service._request_authorizer_identity_sources,
        service._authorize_ws_connect,
        service.run_reentrant,
    )
    failed: ContextVar[str] = ContextVar("failed")

    def find_without_the_default(sources: Any, *arguments: Any, **named: Any) -> Any:
        return find([] if sources == DEFAULT_IDENTITY_SOURCE else sources, *arguments, **named)

    async def run_and_record_the_error(*arguments: Any, **named: Any) -> Any:
        result = await run(*arguments, **named)
        if isinstance(result, dict) and result.get("error"):
            failed.set(json.dumps(result.get("body")))
        return result

    async def authorize_or_401(*arguments: Any) -> Any:
        failed.set("")
        refusal, context = await authorize(*arguments)
        unauthorized = refusal is not None and "Unauthorized" in failed.get()
        return ((401, "Unauthorized") if unauthorized else refusal), context

    service._request_authorizer_identity_sources = find_without_the_default
    service.run_reentrant = run_and_record_the_error
    service._authorize_ws_connect = authorize_or_401


def complete_handshakes() -> None:
    """Answer a handshake with the status and the subprotocol that `$connect` returns."""
    from ministack.services import apigateway as service

    invoke, handle = service._invoke_ws_lambda, service.handle_websocket
    connect: ContextVar[dict[str, Any]] = ContextVar("connect")

    async def invoke_and_record_the_answer(*arguments: Any, **named: Any) -> Any:
        answer = await invoke(*arguments, **named)
        if "CONNECT" in arguments:
            connect.set(answer or {})
        return answer

    async def handle_by_the_answer(
        scope: Any, receive: Any, send: Any, *rest: Any, **named: Any
    ) -> None:
        connect.set({})

        async def send_by_the_answer(message: Any) -> None:
            answer = connect.get()
            if message["type"] == "websocket.accept":
                subprotocol = (answer.get("headers") or {}).get("Sec-WebSocket-Protocol")
                await send({**message, "subprotocol": subprotocol})
            elif message["type"] == "websocket.close" and int(answer.get("statusCode", 200)) >= 300:
                await service._refuse_ws_handshake(scope, send, answer["statusCode"], "", "", "")
            else:
                await send(message)

        await handle(scope, receive, send_by_the_answer, *rest, **named)

    service._invoke_ws_lambda = invoke_and_record_the_answer
    service.handle_websocket = handle_by_the_answer


def hurry_lambda() -> None:
    """Let functions be ready at once; otherwise Chalice waits five seconds for each."""
    from ministack.services import lambda_svc

    lambda_svc._LAMBDA_STATE_TRANSITION_DELAY = 0


if __name__ == "__main__":
    main(sys.argv[1])
