"""An app whose function creates a file when it begins, and then takes a minute."""

SLOW_APP = """
import time
from chalice.app import Chalice

app = Chalice(app_name="slow")


@app.lambda_function()
def sleep(event, context):
    open(event["began"], "w").close()
    time.sleep(60)
"""
