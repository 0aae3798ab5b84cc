"""The local gateway: API Gateway, Lambda and the AWS services behind them, on one machine.

It knows the app as AWS does: through its functions and the events that they get. It never imports
`chalicelib`, and takes from `infra` only the definitions of the tables, queues and MOCK routes.

Processes
---------
- **The gateway**, `python -m gateway run`: one asyncio loop. It serves REST, WebSockets,
  `@connections` and the console on one port, runs schedules and queues, and watches the app's code.
- **The fork server**, `python -m gateway.machine.fork_server`: imports Chalice and the SDK once
  (`functions/preloaded`) and forks execution environments. It ends with the gateway.
- **Execution environments** (`functions/runtime`): at most GATEWAY_CONCURRENCY. Each imports the
  app and handles one invocation at a time. It exchanges lines of JSON with the gateway over a
  socket pair, and ends when the gateway closes its end.
- **The emulator**, `python -m gateway.aws.emulator_process`: DynamoDB, SQS, SNS and Secrets Manager
  by MiniStack, on a free port and in memory, behind a guard (`aws/guard`) that checks signatures.
  It ends when its standard input does, so also if the gateway is killed.
- **The keeper**, `python -m gateway.chalice_local.keeper`: holds the emulator of a `chalice local`
  that runs without a gateway, through all restarts of the worker.

A REST request
--------------
`api/uvicorn_server` reads it and `api/routing` hands it to `RestApi.endpoint` (`api/rest`). That
finds the route among what the app declares (`functions/declarations`), runs the route's authorizer
(`api/authorization`), makes the proxy event (`api/events`) and awaits `Environments.invoke`
(`functions/environments`). An idle execution environment is taken, or one is started, and
`functions/runtime` calls the function. Its result becomes the response, a `FunctionError` 502.

A frame
-------
`WebSocketApi.endpoint` (`api/websocket`) serves a connection from its handshake to its end. The
handshake runs the authorizer and the `$connect` function; a refusal is answered instead of the
upgrade. Then each message runs the `$default` function in a task of its own, whose result is
discarded, and the end of the connection runs `$disconnect`. A message whose `action` is the key of
a MOCK route is answered from the route's templates instead (`api/mock_routes`). To send, the app
posts to `@connections`: `ConnectionsApi.endpoint` (`api/connections`) finds the `Socket`
(`api/sockets`) and queues the frame, which the socket's own task writes.

Start, reload and stop
----------------------
`gateway()` in `server` composes all of this. A change of code calls `Environments.reload`, which
replaces the execution environments; sockets and data stay. A stop undoes the start in reverse:
background work, sockets, server, environments, emulator. `registry` lets other processes find the
running gateways of a checkout, and keeps `.herald/aws.config`.

Folders, each of which imports only from those below it
-------------------------------------------------------
- `chalice_local/`: what `chalice local` needs in place of a gateway.
- `console/`: the endpoints of the page at `/console`.
- `api/`: API Gateway, with the events that the console shows and the faults that it injects.
- `functions/`: Lambda, its queues and its schedules.
- `aws/`: the emulated services, and the variables that lead to them.
- `machine/`: processes, signals and files of the operating system; nothing of AWS.
"""
