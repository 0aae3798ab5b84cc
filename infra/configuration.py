"""A stage's configuration in `.chalice/config.json`, and what follows for its resources."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from chalice.config import Config
from chalice.constants import DEFAULT_HANDLER_NAME

from chalicelib import aws_limits
from chalicelib.settings import Settings, SettingsError
from chalicelib.stage import KEY_SOURCES
from gateway.configuration import stage_environment
from infra.cloudformation import DeploymentError
from infra.stage import BATCH_SECONDS, FUNCTIONS, PROJECT, Stage, queues_and_tables

WORKER = "deliver_queued"
MAX_VARIABLE_BYTES = 4096
"""The largest size of all variables of a function together, as JSON, as Lambda measures them:
https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html"""
LONGEST_QUEUE_URL = f"https://sqs.ap-southeast-9.amazonaws.com.cn/{'0' * 12}/"

SENDING = frozenset({"api_handler", "websocket_message", "deliver_queued"})
VERIFYING = frozenset(
    {"rest_authorizer", "connect_authorizer", "websocket_connect", "websocket_message"}
)
NEEDED_BY = {
    "HERALD_ENCRYPTION_KEYS": SENDING,
    "HERALD_ENCRYPTION_KEYS_ARN": SENDING,
    "HERALD_JWT_SECRET": VERIFYING,
    "HERALD_JWT_SECRET_ARN": VERIFYING,
}
"""The functions that get a variable with a secret, or with a secret's ARN. All get the others.

`websocket_connect` verifies tokens while `$connect` has no authorizer, and `websocket_message`
verifies those of `refresh`.
"""


@dataclass(frozen=True)
class StageConfiguration:
    """A stage, and Chalice's configuration, in which the stage may have a part of its own."""

    stage: Stage
    chalice: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, stage: Stage, project: Path = PROJECT) -> "StageConfiguration":
        """Read the configuration of a project."""
        return cls(stage, json.loads((project / ".chalice" / "config.json").read_text()))

    @cached_property
    def variables(self) -> dict[str, str]:
        """The variables that are configured for the stage's functions."""
        return stage_environment(self.chalice, self.stage.name)

    @property
    def traced(self) -> bool:
        """Whether X-Ray traces the functions."""
        return bool(self.of(DEFAULT_HANDLER_NAME).xray_enabled)

    @property
    def architecture(self) -> str:
        """Lambda's name for the functions' processors."""
        return str(self.of(DEFAULT_HANDLER_NAME).lambda_architecture)

    @property
    def batch_seconds(self) -> int:
        """How long a worker waits for more jobs."""
        return int(self.variables.get(BATCH_SECONDS) or 0)

    def of(self, function: str) -> Config:
        """Return Chalice's view of the configuration of a function."""
        return Config(self.stage.name, function, config_from_disk=dict(self.chalice))

    @property
    def resources(self) -> dict[str, Any]:
        """The stage's tables and queues. The queue hides a job as long as the worker and its
        batching window require."""
        seconds = self.of(WORKER).lambda_timeout or aws_limits.FUNCTION_SECONDS
        resources = queues_and_tables(self.batch_seconds, function_seconds=seconds)
        for logical_id, resource in resources.items():
            attribute = "TableName" if "TableName" in resource["Properties"] else "QueueName"
            resource["Properties"][attribute] = self.stage.named(logical_id)
        return resources

    @property
    def signing_secret(self) -> str | None:
        """The ARN, or else the name, of the secret that verifies tokens; None without one."""
        arn = self.variables.get("HERALD_JWT_SECRET_ARN")
        if arn or any(self.variables.get(source) for source in KEY_SOURCES):
            return arn or None
        return self.stage.signing_key

    @property
    def encryption_secret(self) -> str | None:
        """The ARN of the secret with the master keys of encrypted messages; None without one."""
        return self.variables.get("HERALD_ENCRYPTION_KEYS_ARN") or None

    def variables_of(self, function: str) -> dict[str, str]:
        """Return the configured variables that a function needs."""
        return needed_by(function, self.of(function).environment_variables)

    def check(self) -> None:
        """Check that the functions will accept their settings. Raises DeploymentError."""
        on_lambda = {"AWS_LAMBDA_FUNCTION_NAME": self.stage.function("api_handler")}
        try:
            Settings.from_environ({**self.variables, **on_lambda})
        except SettingsError as error:
            raise DeploymentError(f".chalice/config.json: {error}") from None
        for function in FUNCTIONS:
            self._check_size(function)

    def _check_size(self, function: str) -> None:
        """Raise DeploymentError if Lambda would refuse the variables of a function."""
        variables = {
            **self.variables_of(function),
            "HERALD_STAGE": self.stage.name,
            "HERALD_FANOUT_QUEUE_URL": LONGEST_QUEUE_URL + self.stage.named("FanoutQueue"),
        }
        size = len(json.dumps(variables, separators=(",", ":")).encode())
        if size <= MAX_VARIABLE_BYTES:
            return
        longest = max(variables, key=lambda name: len(variables[name]))
        if longest == "HERALD_ENCRYPTION_KEYS":
            remedy = "put the keys into Secrets Manager, and set HERALD_ENCRYPTION_KEYS_ARN instead"
        else:
            remedy = "shorten it"
        raise DeploymentError(
            f".chalice/config.json: the variables of {function} have {size:,} bytes, and Lambda"
            f" accepts {MAX_VARIABLE_BYTES:,}. {longest} is the longest: {remedy}."
        )


def needed_by(function: str, variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables without the secrets that a function doesn't need."""
    return {
        name: value
        for name, value in variables.items()
        if name not in NEEDED_BY or function in NEEDED_BY[name]
    }
