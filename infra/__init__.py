"""Deployment: builds a stage's package, its templates and policies, and takes them to AWS.

`python -m infra` runs the commands of `cli`. `chalice_cli` is what Chalice's own commands run
before they import the app. None of this package travels to Lambda.
"""
