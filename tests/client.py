"""A process that does one thing after the other for a user, since starting one for each takes seconds.

Reads requests as lines of JSON, `{"arguments": […]}` for the command line or `{"code": "…"}` for Python, each with the
environment variables to set, and answers `{"status": …, "output": …}`.
"""

import contextlib
import io
import json
import os
import sys
import traceback


def answer(request: dict) -> dict:
    """Do what a request asks for."""
    os.environ.update(request.get("environment", {}))
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            if "code" in request:
                exec(request["code"], {})
                status = 0
            else:
                from hfgen.cli.main import main

                status = main(request["arguments"])
        except SystemExit as end:
            status = end.code or 0
        except BaseException:
            traceback.print_exc()
            status = "traceback"
    return {"status": status, "output": output.getvalue()}


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever prints past Python must not come between the answers
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)
