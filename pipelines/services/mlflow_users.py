"""Who MLflow's server lets in: its ``authorization_function``, run inside that server.

MLflow's assistant runs commands and edits files on the server's machine, for every user whose requests come from the
machine itself. Behind an ssh tunnel or a proxy those are all requests: whoever may read a run would be as the user that
the services run as. So nobody has the assistant here.
"""

from __future__ import annotations

_ASSISTANT = "/ajax-api/3.0/mlflow/assistant"


def authenticate() -> object:
    """MLflow's own check of name and password, for all but the assistant: who it is, or the answer that refuses."""
    from flask import make_response, request
    from mlflow.server.auth import authenticate_request_basic_auth

    if request.path.startswith(_ASSISTANT):
        return make_response("The assistant is off: it would run commands on this server's machine.", 403)
    return authenticate_request_basic_auth()
