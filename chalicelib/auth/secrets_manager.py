"""Secrets in AWS Secrets Manager."""

from chalicelib.auth.cached_fetch import FetchError


def read_secret(arn: str) -> bytes:
    """Return the current value of a secret.

    `arn` may also be a name, which then refers to the function's own region.

    Raises FetchError.
    """
    # Imported here, since loading the SDK takes longer than everything else in an authorizer.
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.session import Session

    from chalicelib.runtime.aws import sdk_client

    try:
        region = arn.split(":")[3] if ":" in arn else None
        client = sdk_client(Session(), "secretsmanager", region)
        answer = client.get_secret_value(SecretId=arn)
    except (BotoCoreError, ClientError) as error:
        raise FetchError(str(error)) from error
    value: bytes = answer.get("SecretString", "").encode() or answer.get("SecretBinary", b"")
    return value
