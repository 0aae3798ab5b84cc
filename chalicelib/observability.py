"""Logs as JSON, one object a line, as CloudWatch Logs Insights reads them."""

import json
import logging
import sys
import time

NAMESPACE = "Herald"

_STANDARD = frozenset(vars(logging.makeLogRecord({})))


class JsonFormatter(logging.Formatter):
    """Time, level, logger and message, then whatever a call gave as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "time": int(record.created * 1000),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False, default=str)


def configure_logging() -> None:
    """Send Herald's own log to standard output, whatever the root logger does."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("herald")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def emit_metric(stage: str, name: str, value: float) -> None:
    """Print a count for CloudWatch to make a metric of, in its embedded metric format.

    https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html
    """
    directive = {
        "Namespace": NAMESPACE,
        "Dimensions": [["Stage"]],
        "Metrics": [{"Name": name, "Unit": "Count"}],
    }
    entry = {
        "_aws": {"Timestamp": int(time.time() * 1000), "CloudWatchMetrics": [directive]},
        "Stage": stage,
        name: value,
    }
    sys.stdout.write(json.dumps(entry) + "\n")
    sys.stdout.flush()
