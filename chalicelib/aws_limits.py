"""The limits of AWS that Herald is built around, each with its source, and what follows from them.

The local gateway knows nothing of Herald, so it has API Gateway's limits in constants of its own;
`tests/unit/test_aws_limits.py` compares the two.
"""

# API Gateway, WebSocket API. None of these quotas can be raised.
# https://docs.aws.amazon.com/apigateway/latest/developerguide/apigateway-execution-service-websocket-limits-table.html
INTEGRATION_SECONDS = 29.0
"""How long API Gateway waits for a function."""
CONNECTION_SECONDS = 2 * 60 * 60
"""When API Gateway closes a connection, even a busy one."""
IDLE_SECONDS = 10 * 60
"""When API Gateway closes a connection without traffic."""
MESSAGE_BYTES = 128 * 1024
"""The largest message in either direction."""
FRAME_BYTES = 32 * 1024
"""The largest WebSocket frame from a client; messages are also metered in steps of this size."""
AUTHORIZER_RESULT_BYTES = 8 * 1024
"""The largest result of a Lambda authorizer, its policy and context together."""

# API Gateway, REST API.
# https://docs.aws.amazon.com/apigateway/latest/developerguide/api-gateway-execution-service-limits-table.html
HEADER_BYTES = 10_240
"""The largest request line and headers together."""

# Lambda. The time-out is our own choice (`lambda_timeout` in `.chalice/config.json`; the sweep has
# a longer one), just above API Gateway's. AWS allows 15 minutes.
# https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html
FUNCTION_SECONDS = 30

# DynamoDB.
# https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/Constraints.html
TRANSACTION_ACTIONS = 100
BATCH_GET_KEYS = 100
BATCH_WRITE_ITEMS = 25
ITEM_BYTES = 400 * 1024
PARTITION_KEY_BYTES = 2048
SORT_KEY_BYTES = 1024
TRANSACTION_BYTES = 4 * 1024 * 1024
"""The most that the items of a transaction may have together."""

# SQS, in SendMessageBatch, and in what it hands to a function without a batching window.
# https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessageBatch.html
# https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-configure.html
SQS_BATCH = 10

# SNS. https://docs.aws.amazon.com/sns/latest/api/API_PublishBatch.html
SNS_BATCH = 10

# CloudWatch's embedded metric format: values of one metric in one line.
# https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html
METRIC_VALUES = 100

# --- What follows from them

ANSWER_RESERVE_SECONDS = 2.0
"""Kept back from a function's time, so that its answer still arrives."""
WORK_SECONDS = INTEGRATION_SECONDS - ANSWER_RESERVE_SECONDS
"""How long a request may be worked on before it is answered."""
HANDSHAKE_SECONDS = int(INTEGRATION_SECONDS) + 1
"""From this age on, a connection's `$connect` has ended for certain."""
HANDLER_MS = FUNCTION_SECONDS * 1000
"""The longest that a request's delivery goes on."""
CLAIM_MS = HANDLER_MS + 5_000
"""How long a claim lasts, of an idempotency key or of a job's last try: longer than the function
lives that made it."""
ITEM_CONTENT_BYTES = 300_000
"""Content to store in one item; the rest of the item's size is left to its other attributes."""
TOKEN_BYTES = HEADER_BYTES - 2 * 1024
"""The longest token to accept; the other headers need room, too."""
CONTEXT_BYTES = 7_000
"""The largest context for an authorizer's result; the policy needs room, too."""
CONNECTION_GROUPS = TRANSACTION_ACTIONS // 2
"""Groups of one connection: a transaction writes an item for each, and several others."""


def visibility_seconds(batch_seconds: int, *, function_seconds: int = FUNCTION_SECONDS) -> int:
    """Return how long the queue hides a job from other workers.

    AWS asks for at least six times the function's time-out, plus the batching window: Lambda
    receives a job before the window begins, and tries again when it throttles the function.
    https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-configure.html

    Args:
        batch_seconds: The batching window, `HERALD_FANOUT_BATCH_SECONDS`.
        function_seconds: The worker's time-out.
    """
    return 6 * function_seconds + batch_seconds
