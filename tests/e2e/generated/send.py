"""A client in Python, which openapi-python-client makes of `docs/openapi.yaml`.

Sends README's message, and prints what it sent and how many connections got it.
"""

import json
import sys

from herald_client import AuthenticatedClient
from herald_client.api.messages import post_messages
from herald_client.models import Message, Problem, ProblemCode, Report, Reports, ToUsers


def main(url: str, token: str) -> None:
    client = AuthenticatedClient(base_url=url, token=token)
    message = Message(to=ToUsers(users=["bob"]), type_="chat", data={"text": "Hello, Bob"})
    answer = post_messages.sync(client=client, body=message)
    assert isinstance(answer, Reports)
    [report] = answer.messages
    assert isinstance(report, Report)
    print(json.dumps({"sent": message.to_dict(), "delivered": report.delivered}))

    refusal = post_messages.sync(client=client, body=Message(to=ToUsers(users=[]), data=None))
    assert isinstance(refusal, Problem)
    assert refusal.code is ProblemCode.BAD_REQUEST


if __name__ == "__main__":
    main(*sys.argv[1:])
