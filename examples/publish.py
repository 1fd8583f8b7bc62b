#!/usr/bin/env python3
"""Publishes an event over plain HTTP, with the standard library alone.

    python3 examples/publish.py http://127.0.0.1:8080 news '{"hello": "world"}'

It repeats a publish whose outcome is unknown with the same id: the gateway recognises it, and the event
is in the log once. CROSSFADE_TOKEN is sent as a bearer token if it is set.
"""

import json
import os
import sys
import time
import urllib.error
import urllib.request
import uuid


def publish(gateway, channel, data, name=None, tries=10):
    event = {"id": str(uuid.uuid4()), "channel": channel, "data": data}
    if name:
        event["name"] = name
    headers = {"content-type": "application/json"}
    if token := os.environ.get("CROSSFADE_TOKEN"):
        headers["authorization"] = f"Bearer {token}"
    body = json.dumps(event).encode()
    for attempt in range(tries):
        request = urllib.request.Request(f"{gateway}/api/publish", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            # 429 and 503 pass; every other status says what is wrong with the request.
            if error.code not in (429, 503):
                sys.exit(json.load(error)["error"]["message"])
        except OSError as error:
            print(f"no answer yet: {error}", file=sys.stderr)
        time.sleep(min(0.1 * 2**attempt, 5))
    sys.exit(f"not published after {tries} tries")


if __name__ == "__main__":
    gateway, channel, data = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    print(json.dumps(publish(gateway, channel, data, *sys.argv[4:5])))
