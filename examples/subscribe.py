#!/usr/bin/env python3
"""Prints the events of a channel from a stream of Server-Sent Events, with the standard library alone.

    python3 examples/subscribe.py http://127.0.0.1:8080 news

After a disconnect it sends the last id it has as Last-Event-ID, and receives what it missed.
"""

import json
import sys
import time
import urllib.parse
import urllib.request


def events(gateway, channel):
    """Yields (name, data, id) of every event, over any number of reconnects."""
    last_id, retry = None, 1.0
    url = f"{gateway}/events?channel={urllib.parse.quote(channel, safe='')}"
    while True:
        headers = {"last-event-id": last_id} if last_id else {}
        try:
            with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as stream:
                fields = {}
                for line in stream:
                    line = line.decode().rstrip("\n")
                    if line:
                        key, _, value = line.partition(": ")
                        fields[key] = value
                        continue
                    last_id = fields.get("id", last_id)
                    retry = float(fields.get("retry", retry * 1000)) / 1000
                    if "data" in fields:
                        yield fields.get("event", "message"), json.loads(fields["data"]), last_id
                    fields = {}
        except OSError as error:
            print(f"disconnected: {error}", file=sys.stderr)
        time.sleep(retry)


if __name__ == "__main__":
    for name, data, position in events(*sys.argv[1:3]):
        if name == "crossfade.reset":
            print("the log no longer holds what was missed: load the state anew", file=sys.stderr)
        elif not name.startswith("crossfade.") and name != "open":
            print(position, name, json.dumps(data["data"]), flush=True)
