"""A process that is forked once for each thing that a user does, since imports take seconds.

Its argument is Python to run first. Then it reads requests as lines of JSON, `{"arguments": […]}` for the command line
or `{"code": "…"}` for Python, with `environment` variables to set and a `folder` to go to, and answers
`{"status": …, "output": …}`.
"""

import json
import os
import sys
import tempfile
import traceback

TRACEBACK = 99


def run(request: dict) -> int:
    """Do what a request asks for and return the exit status."""
    os.environ.update(request.get("environment", {}))
    os.chdir(request.get("folder", "."))
    sys.argv = ["hfgen", *request.get("arguments", [])]
    try:
        if "code" not in request:
            return sys.modules["hfgen.cli.main"].main(request["arguments"])
        exec(request["code"], {"__name__": "__main__"})
    except SystemExit as end:
        return end.code or 0
    except BaseException:
        traceback.print_exc()
        return TRACEBACK
    return 0


def answer(request: dict) -> dict:
    """Do what a request asks for in a process of its own."""
    with tempfile.TemporaryFile("w+") as output:
        child = os.fork()
        if not child:
            for number, file in enumerate((os.open(os.devnull, os.O_RDONLY), output.fileno(), output.fileno())):
                os.dup2(file, number)
            status = TRACEBACK
            try:
                status = run(request)
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        output.seek(0)
        return {"status": "traceback" if status == TRACEBACK else status, "output": output.read()}


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever prints past Python must not come between the answers
    exec(sys.argv[1], {})
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)
