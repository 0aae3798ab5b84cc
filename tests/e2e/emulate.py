"""An AWS that can be deployed to: the emulator with all its services, on the port that is named.

What the emulator lacks of AWS is added here, so that the deployment under test is the real one.
Run with `.venv/e2e/bin/python`, which has the translator of SAM templates. Ends with its standard
input.
"""

import json
import os
import sys
import threading
from typing import Any

import uvicorn


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
    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="error", access_log=False)


def complete_cloudformation() -> None:
    """Two kinds of resource that it refuses are taken without effect: a WebSocket API's deployment
    (here a change of a route is in force at once), and alarms over metric math."""
    from ministack.services.cloudformation import provisioners

    handlers = provisioners._RESOURCE_HANDLERS

    def nothing(logical_id: str, *_: Any) -> tuple[str, Any]:
        return logical_id, {}

    def alarm(logical_id: str, properties: Any, stack: str) -> Any:
        create = nothing if "Metrics" in properties else simple
        return create(logical_id, properties, stack)

    simple = handlers["AWS::CloudWatch::Alarm"]["create"]
    handlers["AWS::CloudWatch::Alarm"]["create"] = alarm
    handlers["AWS::ApiGatewayV2::Deployment"] = {
        "create": nothing,
        "delete": lambda *_: None,
    }


def complete_rest_apis() -> None:
    """ImportRestApi and PutRestApi, by which Chalice makes a REST API: the emulator reads OpenAPI
    documents only for CloudFormation."""
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


if __name__ == "__main__":
    main(sys.argv[1])
