"""Tokens for a deployed stage, signed with the HS256 secret that its functions verify with."""

from collections.abc import Mapping

import boto3

from gateway.tokens import token
from infra.cloudformation import DeploymentError
from infra.stage import Stage


def stage_token(
    stage: Stage, environment: Mapping[str, str], session: boto3.Session, user: str, scope: str
) -> str:
    """A token for `user` with `scope`, valid for a day.

    `environment` has the stage's variables, as `.chalice/config.json` gives them. Raises
    DeploymentError where only an identity provider can make one, and the SDK's errors.
    """
    secret = environment.get("HERALD_JWT_SECRET")
    if not secret:
        stored = environment.get("HERALD_JWT_SECRET_ARN")
        if not stored and environment.get("HERALD_JWKS_URL"):
            raise DeploymentError(
                f"Tokens of the stage {stage.name} come from your identity provider:"
                " HERALD_JWKS_URL is set."
            )
        secrets = session.client("secretsmanager")
        secret = secrets.get_secret_value(SecretId=stored or stage.signing_key)["SecretString"]
    return token({**environment, "HERALD_JWT_SECRET": secret}, user, scope)
