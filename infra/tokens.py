"""Signs tokens for a deployed stage, with the HS256 secret that its functions verify them with."""

from collections.abc import Mapping

import boto3

from gateway.tokens import token
from infra.cloudformation import DeploymentError
from infra.stage import Stage


def stage_token(
    stage: Stage, environment: Mapping[str, str], session: boto3.Session, user: str, scope: str
) -> str:
    """Return a token for `user` with `scope` that is valid for a day.

    Args:
        stage: The stage that accepts the token.
        environment: The stage's variables, as `.chalice/config.json` has them.
        session: Where the stage's secret is.
        user: The token's `sub`.
        scope: The token's scopes, separated by spaces.

    Raises:
        DeploymentError: If only an identity provider can make the stage's tokens.
        ClientError: If the secret can't be read; and the SDK's other errors.
    """
    secret = environment.get("HERALD_JWT_SECRET")
    if not secret:
        stored = environment.get("HERALD_JWT_SECRET_ARN")
        if not stored and environment.get("HERALD_JWKS_URL"):
            raise DeploymentError(
                f"Tokens of the stage {stage.name} come from your identity provider, since"
                " HERALD_JWKS_URL is set."
            )
        secrets = session.client("secretsmanager")
        secret = secrets.get_secret_value(SecretId=stored or stage.signing_key)["SecretString"]
    return token({**environment, "HERALD_JWT_SECRET": secret}, user, scope)
